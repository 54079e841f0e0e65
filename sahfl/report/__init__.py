"""results.json -> one self-contained page and its figures, and the conclusion of a study in words."""
