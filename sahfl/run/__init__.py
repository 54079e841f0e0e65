"""A run on disk: its folder, the sessions in its journal, finished cells shared between runs, and software versions."""
