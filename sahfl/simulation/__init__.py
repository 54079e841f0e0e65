"""A federation on one machine: its sites, hostile and pooled sites among them. No hospital loads this package."""

import sahfl.federation  # noqa: F401  (first: it turns Flower's telemetry off before flwr is imported)
