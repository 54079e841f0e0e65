"""A run on disk: its folder, its journal's sessions, the finished cells that runs share, the software that computed."""
