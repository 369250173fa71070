"""What a node needs of the pod network it is part of, whichever that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.kubelet.sandbox import PodNetwork
    from agents.node.underlay_map import UnderlayEntry
    from emulator.runtime.role import RoleEnv

    # The environment of a daemon of that name; its ready() is the daemon's part of the node's.
    Part = Callable[[str], RoleEnv]


class NodeNetwork(Protocol):
    """The daemons of a pod network on one node, and the plugin they stand behind."""

    @property
    def daemons(self) -> tuple[str, ...]:
        """Names of the daemons the node waits for."""

    @property
    def network_up(self) -> tuple[str, str]:
        """Reason and message of the Node's condition once pods can be wired."""

    @property
    def plugin(self) -> PodNetwork:
        """What wires pods."""

    async def run(self, part: Part) -> None:
        """Run the daemons until cancelled."""

    def peers_changed(self, up: list[UnderlayEntry], gone: list[UnderlayEntry]) -> None:
        """Other nodes came, moved or went."""

    def status(self) -> dict[str, Any]:
        """What ``podwire status`` shows of it beside the node's own."""
