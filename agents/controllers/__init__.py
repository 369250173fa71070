"""The controller manager: what keeps the objects of the API as they ask to be."""

from agents.controllers.daemon import ControllersConfig, run_controllers
from agents.controllers.nodelifecycle import NodeTimings

__all__ = ["ControllersConfig", "NodeTimings", "run_controllers"]
