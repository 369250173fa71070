"""The controller manager: what keeps the objects of the API as they ask to be."""

from agents.controllers.daemon import ControllersConfig, run_controllers

__all__ = ["ControllersConfig", "run_controllers"]
