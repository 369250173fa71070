"""Gives pods their nodes."""

from agents.scheduler.daemon import SchedulerConfig, run_scheduler

__all__ = ["SchedulerConfig", "run_scheduler"]
