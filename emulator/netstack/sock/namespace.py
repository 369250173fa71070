"""What the sockets ask of the namespace they live in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from emulator.netstack.packet import Drop, DropReason


class SocketNamespace(Protocol):
    """The part of a network namespace below its sockets."""

    def output(
        self, data: bytes, *, oif: str = "", mark: int = 0, gso_size: int = 0
    ) -> Drop | None:
        """Send a whole IPv4 packet made here; a Drop says why it did not get out."""

    def source_address(self, dst: int) -> int | None:
        """The address a packet to ``dst`` would carry; None if no route lets it out."""

    def route_refusal(self, dst: int) -> DropReason | None:
        """Why nothing made here gets out to ``dst``; None if a route takes it."""

    def route_mtu(self, dst: int) -> int:
        """The MTU of the route to ``dst``, in bytes."""

    def is_local(self, ip: int) -> bool:
        """True for an address of this namespace (127/8 included)."""

    def poke(self) -> None:
        """The sockets have something due at once: have ``handle_timer`` called soon."""
