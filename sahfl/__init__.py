"""Federated training of head-CT hemorrhage segmentation: only low-rank adapter factors leave a hospital."""

__version__ = "0.1.0"
