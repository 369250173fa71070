"""Hypothesis without deadlines: a busy machine is no wrong answer."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("podwire", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("podwire")
