"""A simulated federation on one machine, with hostile and pooled sites if needed. No hospital loads this package."""

import sahfl.federation  # noqa: F401  (first: it turns Flower's telemetry off before flwr is imported)
