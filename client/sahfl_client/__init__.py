"""The hospital's side of a deployment: the command ``sahfl-client``."""

import sahfl.federation  # first of all: it turns Flower's telemetry off before anything imports flwr  # noqa: F401
