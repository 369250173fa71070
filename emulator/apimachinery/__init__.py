"""Kubernetes' API machinery as pure functions over plain dicts: no clock, no IO, no randomness."""
