"""JSON schemas of the settings files, for editors; ``docs/reference.py`` makes them from the configuration classes."""

from pathlib import Path


def schema_of(kind: str) -> Path:
    """File of the schema of a ``study``, ``site``, ``server`` or ``consortium`` file."""
    return Path(__file__).with_name(f"{kind}.json")
