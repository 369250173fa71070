"""flannel's and bridge's plugins as the kubelet calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from agents.cni.plugin import NodeCni
    from agents.cni.result import CniResult


class SandboxNetwork:
    """Wires sandboxes with ``NodeCni``, which never waits and asks nothing of the pod."""

    plugin_type = "flannel"

    def __init__(self, cni: NodeCni) -> None:
        self._cni = cni

    def ready(self) -> str | None:
        """None when pods can be wired, else why not, in the runtime's words."""
        return self._cni.ready()

    async def add(self, container_id: str, netns: str, pod: object) -> CniResult:
        """``NodeCni.add``."""
        return self._cni.add(container_id, netns)

    async def delete(self, container_id: str, netns: str) -> None:
        """``NodeCni.delete``."""
        self._cni.delete(container_id, netns)

    async def collect(self, live: Collection[str]) -> tuple[str, ...]:
        """``NodeCni.collect``."""
        return self._cni.collect(live)
