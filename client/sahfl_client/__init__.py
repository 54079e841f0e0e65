"""A hospital's daemon: the command ``sahfl-client``."""
