"""The lines ``debug`` asks for, as BIRD writes them (pure).

Source: what BIRD 1.6.8 and 2.0.12 log with each flag alone.  BIRD 2 says nothing of channels'
states when it is asked by birdc, BIRD 1 is one daemon a family and ours is the one for IPv4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.bird.config import Dest
from agents.bird.ctl.reply import Dialect
from agents.bird.ctl.show_protocols import table_name
from agents.bird.filters import Source
from agents.bird.messages import (
    KEEPALIVE,
    NOTIFICATION,
    OPEN,
    REFRESH_BEGIN,
    REFRESH_END,
    REFRESH_REQUEST,
    ROUTE_REFRESH,
    UPDATE,
    Open,
)
from agents.bird.net import Afi, Net, format_address
from agents.bird.peer_host import Life
from agents.bird.update import end_of_rib
from emulator.addr import format_ip

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.bird.rib import Path

_DESTS: Final = {
    Dest.BLACKHOLE: "blackhole",
    Dest.UNREACHABLE: "unreachable",
    Dest.PROHIBIT: "prohibited",
}
_CHANNELS: Final = {Afi.IPV4: "ipv4", Afi.IPV6: "ipv6"}
_REFRESHES: Final = {
    REFRESH_REQUEST: "ROUTE-REFRESH",
    REFRESH_BEGIN: "BEGIN-OF-RR",
    REFRESH_END: "END-OF-RR",
}
_HEADER: Final = 19
_ENDS_OF_RIB: Final = frozenset(end_of_rib(afi)[_HEADER:] for afi in Afi)


class ProtocolTrace:
    """A ``Trace`` that writes lines; ``flags`` are those of the command ``debug``."""

    def __init__(
        self,
        name: str,
        flags: tuple[str, ...],
        dialect: Dialect,
        say: Callable[[str], None],
        index_of: Callable[[str], int],
        *,
        is_static: bool,
    ) -> None:
        """``index_of`` gives an interface's number."""
        self._name = name
        self._flags = frozenset(flags)
        self._dialect = dialect
        self._say = say
        self._index_of = index_of
        # Static routes of BIRD 2 follow neighbours, not interfaces.
        self._follows_links = "interfaces" in flags and not (is_static and dialect is Dialect.BIRD2)

    def _tell(self, flag: str, text: str) -> None:
        if flag in self._flags:
            self._say(f"{self._name}: {text}")

    # -- routes ------------------------------------------------------------------------------------

    def imported(self, what: str, afi: Afi, key: bytes, path: Path) -> None:
        """As ``Trace``."""
        self._route("routes", ">", what, afi, key, path)

    def import_refused(self, why: str, afi: Afi, key: bytes, path: Path) -> None:
        """As ``Trace``."""
        self._route("filters", ">", why, afi, key, path)

    def exported(
        self, what: str, afi: Afi, key: bytes, path: Path, *, several: bool = False
    ) -> None:
        """As ``Trace``."""
        self._route("routes", "<", what, afi, key, path, several)

    def export_refused(
        self, why: str, afi: Afi, key: bytes, path: Path, *, again: bool = False
    ) -> None:
        """As ``Trace``: BIRD 1 takes away whatever it does not repeat, be it there or not."""
        self._route("filters", "<", why, afi, key, path)
        if again and self._dialect is Dialect.BIRD1:
            self._route("routes", "<", "removed", afi, key, path)

    def _route(
        self,
        flag: str,
        arrow: str,
        what: str,
        afi: Afi,
        key: bytes,
        path: Path,
        several: bool = False,
    ) -> None:
        if flag not in self._flags:
            return
        net = Net.from_key(afi, key)
        if self._dialect is Dialect.BIRD2:
            ids = f"{self._private_id(path)}L {path.channel.tx_path_id(path.path_id)}G"
            dest = _DESTS.get(path.dest, "unicast")
            self._say(f"{self._name}.{_CHANNELS[afi]} {arrow} {what} {net} {ids} {dest}")
        elif afi is Afi.IPV4:
            self._say(f"{self._name} {arrow} {what} {net} {_via(path, several)}")

    def _private_id(self, path: Path) -> int:
        if path.channel.source is Source.DEVICE and path.ways:
            return self._index_of(path.ways[0].dev)
        return path.path_id

    # -- states and events -------------------------------------------------------------------------

    def life(self, life: Life, *, resumed: bool = False) -> None:
        """As ``Trace``."""
        old = self._dialect is Dialect.BIRD1
        match life:
            case Life.START:
                if not resumed:
                    self._tell("states", "Starting")
                self._tell("states", "State changed to start")
                if not resumed:
                    self.event("Started")
            case Life.UP:
                if old and not resumed:
                    self._tell("states", "Connected to table master")
                self._tell("states", f"State changed to {'feed' if old else 'up'}")
            case Life.FLUSH:
                self._tell("states", "State changed to stop")
            case Life.DOWN:
                self.event("Down")
                if not old:
                    self._tell("states", "State changed to flush")
                self._tell("states", "State changed to down")

    def stopping(self) -> None:
        """As ``Trace``."""
        self._tell("states", "Shutting down")
        self.event("Shutdown requested")

    def feeding(self) -> None:
        """As ``Trace``."""
        if self._dialect is Dialect.BIRD1:
            self._tell("states", "State changed to feed")

    def fed(self, afi: Afi) -> None:
        """As ``Trace``."""
        if self._dialect is Dialect.BIRD1 and afi is Afi.IPV4:
            self._tell("states", "State changed to up")

    def switched(self, *, off: bool) -> None:
        """A protocol other than BGP begins to stop, or to start."""
        if off:
            self._tell("states", "Shutting down")
            self._tell("states", "State changed to flush")
            return
        self._tell("states", "Starting")
        if self._dialect is Dialect.BIRD1:
            self._tell("states", "Connected to table master")
            self._tell("states", "State changed to feed")
        else:
            self._tell("states", "State changed to up")

    def settled(self, *, off: bool) -> None:
        """It has stopped, or started."""
        if off:
            self._tell("states", "State changed to down")
        else:
            self.fed(Afi.IPV4)

    def event(self, text: str) -> None:
        """As ``Trace``."""
        self._tell("events", text)

    # -- packets -----------------------------------------------------------------------------------

    def message(self, kind: int, body: bytes, *, received: bool) -> None:
        """As ``Trace``."""
        if "packets" not in self._flags:
            return
        for text in self._received(kind, body) if received else self._sent(kind, body):
            self._tell("packets", text)

    def _sent(self, kind: int, body: bytes) -> list[str]:
        match kind:
            case _ if kind == OPEN:
                asn, hold = Open.parse(body).true_as, int.from_bytes(body[3:5], "big")
                return [f"Sending OPEN(ver={body[0]},as={asn},hold={hold},id={body[5:9].hex()})"]
            case _ if kind == NOTIFICATION:
                return [f"Sending NOTIFICATION(code={body[0]}.{body[1]})"]
            case _:
                return [f"Sending {_name(kind, body)}"]

    def _received(self, kind: int, body: bytes) -> list[str]:
        match kind:
            case _ if kind == OPEN and len(body) >= 9:
                asn, hold = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
                router_id = body[5:9].hex()
                if self._dialect is Dialect.BIRD2:
                    router_id = format_ip(int.from_bytes(body[5:9], "big"))
                return [f"Got OPEN(as={asn},hold={hold},id={router_id})"]
            case _ if kind == NOTIFICATION:
                return []
            case _ if kind == UPDATE and body in _ENDS_OF_RIB:
                return ["Got UPDATE", "Got END-OF-RIB"]
            case _:
                return [f"Got {_name(kind, body)}"]

    def kernel(self, key: bytes, what: str) -> None:
        """As ``Trace``."""
        if what == "installing" and self._dialect is Dialect.BIRD1:
            what = "reinstalling"
        self._tell("packets", f"{Net.from_key(Afi.IPV4, key)}: {what}")

    def pruning(self) -> None:
        """As ``Trace``."""
        self.event(f"Pruning table {table_name(Afi.IPV4, self._dialect)}")

    # -- interfaces --------------------------------------------------------------------------------

    def interface(self, name: str, what: str) -> None:
        """As ``Trace``."""
        if self._follows_links:
            self._say(f"{self._name} < interface {name} {what}")

    def address(self, address: bytes, length: int, dev: str, *, first: bool, added: bool) -> None:
        """As ``Trace``."""
        old = self._dialect is Dialect.BIRD1
        if "interfaces" not in self._flags or (old and len(address) != 4):
            return
        afi = Afi.IPV4 if len(address) == 4 else Afi.IPV6
        shift = afi.bits - length
        net = Net(afi, int.from_bytes(address, "big") >> shift << shift, length)
        word = "primary address" if old and first else "address"
        done = "added" if added else "removed"
        self._say(f"{self._name} < {word} {net} on interface {dev} {done}")


def _name(kind: int, body: bytes) -> str:
    if kind == UPDATE:
        return "END-OF-RIB" if body in _ENDS_OF_RIB else "UPDATE"
    if kind == ROUTE_REFRESH:
        return _REFRESHES.get(body[2], "ROUTE-REFRESH") if len(body) == 4 else "ROUTE-REFRESH"
    return "KEEPALIVE" if kind == KEEPALIVE else f"message of type {kind}"


def _via(path: Path, several: bool) -> str:
    """rt_format_via of BIRD 1."""
    if path.dest is not Dest.UNICAST:
        return _DESTS[path.dest]
    ways = path.ways
    if several or len(ways) > 1:
        return "multipath"
    if not ways:
        return "unreachable"
    gateway, dev = ways[0]
    return f"via {format_address(gateway)} on {dev}" if gateway else f"dev {dev}"
