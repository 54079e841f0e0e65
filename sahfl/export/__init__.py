"""Taking a trained network out of a run, for other programs; each form is compared with the run's own network."""
