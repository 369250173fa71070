"""The map emulated address ↔ underlay, which every node publishes in etcd and watches.

Key ``/podwire/underlay/<emulated ip>``, value JSON ``{"name", "ip", "mac", "underlay",
"vxlan_port", "carrier_port", "bgp_port"}``, under a lease that lapses when the node's process is
gone: a switch port that went dark.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from emulator.addr import parse_ip, parse_mac
from emulator.errors import UsageError
from etcd.client import Code, CompactedError, EtcdError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping

    from etcd.client import EtcdClient

    OnChange = Callable[[list["UnderlayEntry"], list["UnderlayEntry"]], None]

PREFIX: Final = b"/podwire/underlay/"
# How long a dead node's entry stays: longer than a restart takes (about 1 s), short enough that a
# person who watches sees the port go dark.
LEASE_TTL_S: Final = 15
RETRY_S: Final = 0.5
# Of a value that is none, so much is told: an entry has less.
MAX_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class UnderlayEntry:
    """One node's place; addresses are text as in the JSON."""

    name: str
    ip: str
    mac: str
    underlay: str
    vxlan_port: int
    carrier_port: int
    # Where its BGP speaker listens; 0 if it has none.
    bgp_port: int = 0

    def value(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def parse(cls, value: bytes) -> UnderlayEntry:
        """Read a value; UsageError says what is wrong with it."""
        try:
            entry = cls(**json.loads(value))
            parse_ip(entry.ip)
            parse_ip(entry.underlay)
            parse_mac(entry.mac)
            ports = (entry.vxlan_port, entry.carrier_port, entry.bgp_port)
            if not all(type(port) is int for port in ports):
                raise ValueError("ports must be numbers")
        except (ValueError, TypeError, AttributeError, RecursionError, UsageError) as error:
            raise UsageError(f"underlay entry {value[:MAX_SHOWN]!r}: {error}") from None
        if not all(0 < port < 65536 for port in ports[:2]) or not 0 <= entry.bgp_port < 65536:
            raise UsageError(f"underlay entry {value!r}: ports must be 1 to 65535")
        return entry


def changes(
    known: Mapping[bytes, UnderlayEntry], now: Mapping[bytes, UnderlayEntry]
) -> tuple[list[UnderlayEntry], list[UnderlayEntry]]:
    """Return (entries to set, entries to forget) that turn ``known`` into ``now``."""
    to_set = [entry for key, entry in now.items() if known.get(key) != entry]
    gone = [entry for key, entry in known.items() if key not in now]
    return to_set, gone


class UnderlayMap:
    """Publishes this node's entry and tells ``on_change(set, gone)`` of the others'."""

    def __init__(
        self,
        client: EtcdClient,
        own: UnderlayEntry,
        on_change: OnChange,
        log: logging.Logger,
    ) -> None:
        self._client = client
        self._own = own
        self._on_change = on_change
        self._log = log
        self._known: dict[bytes, UnderlayEntry] = {}
        self.published = asyncio.Event()

    async def run(self) -> None:
        """Keep both up until cancelled; etcd's absence is waited out."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish(), name="underlay.publish")
            group.create_task(self._follow(), name="underlay.follow")

    async def _publish(self) -> None:
        key = PREFIX + self._own.ip.encode()
        lease = 0
        failing = False
        while True:
            try:
                if not lease:
                    granted = await self._client.lease_grant(LEASE_TTL_S)
                    await self._client.put(key, self._own.value(), lease=granted.id)
                    lease = granted.id
                    self.published.set()
                else:
                    await self._client.lease_keep_alive_once(lease)
                failing = False
                await asyncio.sleep(LEASE_TTL_S / 3)
            except (EtcdError, OSError) as error:
                # The lease is kept: an etcd that is back, or full, may still know it.
                if isinstance(error, EtcdError) and error.code is Code.NOT_FOUND:
                    lease = 0
                if not failing:
                    self._log.warning("cannot publish the underlay entry yet: %s", error)
                failing = True
                await asyncio.sleep(RETRY_S)

    async def withdraw(self) -> None:
        """Take the entry back, so that peers forget a node that leaves on purpose."""
        with contextlib.suppress(EtcdError, OSError):
            await self._client.delete(PREFIX + self._own.ip.encode())

    async def _follow(self) -> None:
        while True:
            try:
                found = await self._client.get(PREFIX, prefix=True)
                self._resync({kv.key: kv.value for kv in found.kvs})
                await self._watch(found.revision + 1)
            except CompactedError:
                continue
            except (EtcdError, OSError) as error:
                self._log.warning("cannot follow the underlay map: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _watch(self, revision: int) -> None:
        async with self._client.watch(PREFIX, prefix=True, start_revision=revision) as batches:
            async for batch in batches:
                to_set, gone = [], []
                for event in batch.events:
                    entry = self._read(event.kv.value) if event.kind == "PUT" else None
                    before = self._known.pop(event.kv.key, None)
                    if entry is not None:
                        self._known[event.kv.key] = entry
                        if entry != before:
                            to_set.append(entry)
                    elif before is not None:
                        gone.append(before)
                self._tell(to_set, gone)

    def _resync(self, values: Mapping[bytes, bytes]) -> None:
        read = {key: self._read(value) for key, value in values.items()}
        entries = {key: entry for key, entry in read.items() if entry is not None}
        to_set, gone = changes(self._known, entries)
        self._known = entries
        self._tell(to_set, gone)

    def _read(self, value: bytes) -> UnderlayEntry | None:
        """Parse another node's entry; None for our own and for what is not one."""
        try:
            entry = UnderlayEntry.parse(value)
        except UsageError as error:
            self._log.warning("ignored: %s", error)
            return None
        if entry.ip != self._own.ip:
            return entry
        if entry.name != self._own.name:
            self._log.error("node %s also claims our address %s", entry.name, entry.ip)
        return None

    def _tell(self, to_set: list[UnderlayEntry], gone: list[UnderlayEntry]) -> None:
        if to_set or gone:
            self._on_change(to_set, gone)
