"""One namespace's netfilter: the hooks packets pass, the tables and sets tools edit.

Theory of operation: at each hook the tables are visited by priority.  PREROUTING and OUTPUT: raw,
connection tracking, mangle, nat (destination); OUTPUT then filter.  FORWARD: mangle, filter.
INPUT: mangle, filter, nat (source), confirm.  POSTROUTING: mangle, nat (source), confirm.  The nat
tables see only the first packet of a connection.  A table exists from the first time a tool
touches it, and connections are tracked from the first rule that needs them, as in Linux.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.errors import UsageError
from emulator.netstack.netfilter.connection import (
    CONFIRMED,
    DST_NAT_DONE,
    DYING,
    SEEN_REPLY,
    SRC_NAT_DONE,
    UNTRACKED,
    Connection,
    CtState,
    ct_state,
    is_icmp_error,
    is_plain,
)
from emulator.netstack.netfilter.conntrack import NF_CONNTRACK_MAX, ConntrackTable
from emulator.netstack.netfilter.ipset import IpSets
from emulator.netstack.netfilter.nat import Nat, describe_nat
from emulator.netstack.netfilter.recent import RecentLists
from emulator.netstack.netfilter.restore import restore
from emulator.netstack.netfilter.rules import TABLES, Chain, RuleSpec, Table
from emulator.netstack.netfilter.walk import Walker
from emulator.netstack.packet import IPIP, UDP, Drop, Hook, NamespaceView, Packet

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_HOOK_NAMES: Final = tuple(hook.name for hook in Hook)
_ENTERS: Final = (Hook.PREROUTING, Hook.OUTPUT)
_LEAVES: Final = (Hook.INPUT, Hook.POSTROUTING)


class RuleInfo(NamedTuple):
    """One rule of a snapshot; ``text`` is what follows ``-A CHAIN ``."""

    text: str
    packets: int
    octets: int


class ChainInfo(NamedTuple):
    """One chain of a snapshot; ``policy`` is "" for user chains."""

    name: str
    policy: str
    packets: int
    octets: int
    rules: tuple[RuleInfo, ...]


class TableInfo(NamedTuple):
    """One table of a snapshot: built-in chains in hook order, then user chains by name."""

    name: str
    chains: tuple[ChainInfo, ...]


class Netfilter:
    """A PacketFilter (emulator.netstack.packet) with iptables' tables."""

    def __init__(
        self,
        view: NamespaceView,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        netns: str = "",
        conntrack_max: int = NF_CONNTRACK_MAX,
    ) -> None:
        """``clock`` gives seconds; ``netns`` names the namespace in traces."""
        self.view = view
        self.clock = clock
        self.rng = rng
        self.netns = netns
        self.tables: dict[str, Table] = {}
        self.conntrack = ConntrackTable(clock, limit=conntrack_max)
        self.nat = Nat(self.conntrack, rng)
        self.recent = RecentLists()
        self.sets = IpSets(rng=rng, changed=view.invalidate_flows, references=self._set_references)
        self.tracking = False
        # What the owner of a chain says of it, by ``TABLE CHAIN``: traces and drops repeat it.
        self.notes: dict[str, str] = {}
        # What restore() has parsed before, by the text after ``-A CHAIN ``.
        self.remembered_rules: dict[str, tuple[RuleSpec, ...]] = {}
        self._walker = Walker(self, netns)
        nothing: tuple[Table, Chain] | None = None
        self._raw = [nothing] * len(Hook)
        self._mangle = [nothing] * len(Hook)
        self._nat = [nothing] * len(Hook)
        self._filter = [nothing] * len(Hook)

    # -- the packet path -------------------------------------------------------------------------

    def hook(self, hook: Hook, packet: Packet, in_dev: str, out_dev: str) -> Drop | None:
        """Take a packet through one hook; it is changed in place."""
        drop: Drop | None
        entering = hook in _ENTERS
        if entering:
            if (place := self._raw[hook]) is not None:
                drop = self._walker.run(*place, packet, in_dev, out_dev)
                if drop is not None:
                    return drop
            if self.tracking:
                drop = self.conntrack.track(
                    packet, local=hook is Hook.OUTPUT, looped=in_dev == "lo"
                )
                if drop is not None:
                    return drop
                self._note_tracking(packet)
        if (place := self._mangle[hook]) is not None:
            drop = self._walker.run(*place, packet, in_dev, out_dev)
            if drop is not None:
                return drop
        if entering and packet.ct is not None:
            drop = self._translate(hook, packet, in_dev, out_dev, source=False)
            if drop is not None:
                return drop
        if (place := self._filter[hook]) is not None:
            drop = self._walker.run(*place, packet, in_dev, out_dev)
            if drop is not None:
                return drop
        if packet.ct is not None and hook in _LEAVES:
            drop = self._translate(hook, packet, in_dev, out_dev, source=True)
            if drop is not None:
                return drop
            return self.conntrack.confirm(packet)
        return None

    def _note_tracking(self, packet: Packet) -> None:
        connection = packet.ct
        if packet.flow is not None and (
            connection is None
            or not (connection.steady or self._one_way(connection, packet.ct_reply))
            or not is_plain(packet)
        ):
            packet.flow.cacheable = False
        if packet.trace is not None:
            packet.trace.step(self.netns, "hook", f"conntrack {self._describe(packet)}", packet)

    @staticmethod
    def _one_way(connection: Connection, reply: bool) -> bool:
        """True for packets nobody answers (VXLAN's and IP in IP's outer ones): none differs.

        The flow cache watches the status: the first answer makes it look again.
        """
        return (
            connection.proto in (UDP, IPIP)
            and not reply
            and connection.status & (CONFIRMED | SEEN_REPLY | DYING) == CONFIRMED
        )

    @staticmethod
    def _describe(packet: Packet) -> str:
        state = CtState(ct_state(packet)).name or ""
        direction = " reply" if packet.ct_reply else ""
        return f"{state}{direction}"

    def _translate(
        self, hook: Hook, packet: Packet, in_dev: str, out_dev: str, *, source: bool
    ) -> Drop | None:
        connection = packet.ct
        if connection is None or connection is UNTRACKED:
            return None
        done = SRC_NAT_DONE if source else DST_NAT_DONE
        if (
            not connection.status & (done | CONFIRMED | DYING)
            and not packet.ct_reply
            and not is_icmp_error(packet)
            and "nat" in self.tables
        ):
            place = self._nat[hook]
            if place is not None:
                drop = self._walker.run(*place, packet, in_dev, out_dev)
                if drop is not None:
                    return drop
            if not connection.status & done:
                drop = self.nat.setup_null(connection, source=source)
                if drop is not None:
                    return drop
        if packet.trace is None:
            return self.nat.apply(packet, source=source)
        before = packet.data
        drop = self.nat.apply(packet, source=source)
        if packet.data != before:
            detail = f"{_HOOK_NAMES[hook]} {describe_nat(before, packet, source=source)}"
            packet.trace.step(self.netns, "nat", detail, packet)
        return drop

    # -- tables ----------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """Return a table to look at or to edit; UsageError for a name that is none.

        A table no tool has changed yet is a new one: it comes alive with its first change.
        """
        if name not in TABLES:
            raise UsageError(f"there is no table {name!r}; the tables are {', '.join(TABLES)}")
        return self.tables.get(name) or Table(name)

    def rules_changed(self, table: Table) -> None:
        """Take note that a table is not what it was."""
        self.tables[table.name] = table
        places = {
            "raw": self._raw,
            "mangle": self._mangle,
            "nat": self._nat,
            "filter": self._filter,
        }[table.name]
        for hook in Hook:
            chain = table.chains.get(hook.name)
            places[hook] = (table, chain) if chain is not None else None
        if not self.tracking:
            self.tracking = table.name == "nat" or any(
                rule.spec.needs_conntrack for chain in table.chains.values() for rule in chain.rules
            )
        self._forget_unused_lists()
        self.view.invalidate_flows()

    def _forget_unused_lists(self) -> None:
        if not any(True for _ in self.recent):
            return
        named = {
            getattr(match, "list_name", "")
            for table in self.tables.values()
            for chain in table.chains.values()
            for rule in chain.rules
            for match in rule.spec.matches
        }
        self.recent.keep_only(named)

    def _set_references(self, name: str) -> int:
        """How many matches of rules look into an IP set."""
        return sum(
            match.sets.count(name)
            for table in self.tables.values()
            for chain in table.chains.values()
            for rule in chain.rules
            for match in rule.spec.matches
        )

    def restore(self, text: str, *, noflush: bool = True, counters: bool = False) -> None:
        """Load rules in iptables-save's format, each table all or nothing.

        Raises RestoreError (a UsageError) that names the line.
        """
        restore(self, text, noflush=noflush, counters=counters)

    def snapshot(self) -> tuple[TableInfo, ...]:
        """Return all tables as frozen records, in the order iptables-save prints them."""
        return tuple(
            TableInfo(
                name,
                tuple(
                    ChainInfo(
                        chain.name,
                        chain.policy,
                        chain.counter.packets,
                        chain.counter.bytes,
                        tuple(
                            RuleInfo(rule.spec.save(), rule.counter.packets, rule.counter.bytes)
                            for rule in chain.rules
                        ),
                    )
                    for chain in self.tables[name].ordered()
                ),
            )
            for name in TABLES
            if name in self.tables
        )

    # -- connections and time --------------------------------------------------------------------

    def address_gone(self, dev: str, ip: int) -> int:
        """Forget masqueraded connections that used an address the device lost; returns how many."""
        return self._forget(lambda c: c.masquerade_dev == dev and c.reply.dst == ip)

    def device_gone(self, dev: str) -> int:
        """Forget masqueraded connections of a device that went down; returns how many."""
        return self._forget(lambda c: c.masquerade_dev == dev)

    def _forget(self, doomed: Callable[[Connection], bool]) -> int:
        victims = [c for c in self.conntrack if doomed(c)]
        for connection in victims:
            self.conntrack.delete(connection)
        if victims:
            self.view.invalidate_flows()
        return len(victims)

    def get_timer(self) -> float | None:
        """Return when handle_timer wants to be called; None for never."""
        return self.conntrack.get_timer()

    def handle_timer(self) -> None:
        """Free what has expired."""
        self.conntrack.handle_timer()
