"""The central server of a consortium: the command ``sahfl-server``."""
