"""The protocols that speak with this machine and not with a peer: static, direct, kernel, device.

They follow the configuration and what a scan of the kernel shows; each of them is in
``local_routes.py`` or ``kernel.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.bird.kernel import KernelProtocol
from agents.bird.local_routes import DirectProtocol, StaticProtocol
from agents.bird.net import Afi
from agents.bird.tracing import trace_interfaces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agents.bird.config import SpeakerConfig
    from agents.bird.kernel import Interface, KernelPort
    from agents.bird.nexthop import Resolver
    from agents.bird.rib import Table
    from agents.bird.tracing import Trace


class LocalProtocols:
    """Those of one speaker; without a ``port`` there are only static routes."""

    def __init__(
        self,
        port: KernelPort | None,
        tables: Mapping[Afi, Table],
        resolvers: Mapping[Afi, Resolver],
        now: float,
    ) -> None:
        self.statics: dict[str, StaticProtocol] = {}
        self.direct: DirectProtocol | None = None
        self.kernel: KernelProtocol | None = None
        self.interfaces: Sequence[Interface] = ()
        # When each last began, by name.
        self.since: dict[str, float] = {}
        # When ``scan`` is due; None without a kernel.
        self.scan_at: float | None = now if port is not None else None
        self._port = port
        self._tables = tables
        self._resolvers = resolvers
        self._interval_s = 0.0
        # What the last scan saw, and whether nothing was left to do then.
        self._scanned: object = None
        self._told: object = None
        self._device = ""
        # Who listens to which protocol.
        self._traces: dict[str, Trace] = {}

    def set_trace(self, name: str, trace: Trace | None) -> None:
        """Tell a listener what a protocol does from now on, None for nobody."""
        if trace is None or not self._has(name):
            self._traces.pop(name, None)
        else:
            self._traces[name] = trace
        if self.kernel is not None and self.kernel.config.name == name:
            self.kernel.set_trace(trace)
        for protocol in (*self.statics.values(), self.direct):
            if protocol is not None and protocol.config.name == name:
                for channel in protocol.channels.values():
                    channel.trace = trace

    def _has(self, name: str) -> bool:
        own = (self.direct, self.kernel)
        names = [protocol.config.name for protocol in own if protocol is not None]
        return name in (self._device, *self.statics, *names)

    def configure(self, config: SpeakerConfig, now: float, *, held: bool) -> None:
        """Follow the configuration, then look at the kernel; ``held`` keeps it from being written.

        A protocol that stays keeps its routes as far as they are still wanted.  What was told last
        is not looked at again: most configurations change a neighbour.
        """
        about = (config.static, config.direct, config.kernel, config.device, held)
        if about == self._told:
            return
        self._told = about
        intervals = [config.device.scan_s]
        if config.kernel is not None:
            intervals.append(config.kernel.scan_s)
        self._interval_s = min(intervals)
        self._device = config.device.name
        self._configure_static(config, now)
        self._configure_direct(config, now)
        self._configure_kernel(config, now, held)
        self.scan(now)

    def _configure_static(self, config: SpeakerConfig, now: float) -> None:
        wanted = {static.name: static for static in config.static}
        for name in [name for name in self.statics if name not in wanted]:
            _withdraw_all(self.statics.pop(name))
        for name, static in wanted.items():
            if name not in self.statics:
                self.statics[name] = StaticProtocol(static, self._tables, self._resolvers)
                self.since[name] = now
            self.statics[name].config = static

    def _configure_direct(self, config: SpeakerConfig, now: float) -> None:
        if config.direct is None:
            if self.direct is not None:
                _withdraw_all(self.direct)
            self.direct = None
        elif self.direct is None:
            self.direct = DirectProtocol(config.direct, self._tables, self._resolvers)
            self.since[config.direct.name] = now
        else:
            self.direct.config = config.direct

    def _configure_kernel(self, config: SpeakerConfig, now: float, held: bool) -> None:
        table = self._tables[Afi.IPV4]
        if config.kernel is None or self._port is None:
            if self.kernel is not None:
                table.exporters.remove(self.kernel)
                self.kernel.shut_down()
                self.kernel.channel.withdraw(0, list(self.kernel.channel.received))
            self.kernel = None
        elif self.kernel is None:
            resolver = self._resolvers[Afi.IPV4]
            self.kernel = KernelProtocol(config.kernel, table, resolver, self._port)
            self.kernel.held = held
            self.since[config.kernel.name] = now
            table.exporters.append(self.kernel)
        else:
            self.kernel.reconfigure(config.kernel)

    def scan_if_changed(self, now: float) -> None:
        """The scan of every two seconds, which nearly always would find nothing new."""
        if self._port is None:
            return
        kernel = self.kernel
        if (
            self._scanned is None
            or self._scanned != self._port.generation
            or self._traces
            or (kernel is not None and (kernel.refused or kernel.held))
        ):
            self.scan(now)
        else:
            self.scan_at = now + self._interval_s

    def scan(self, now: float) -> None:
        """Look at the kernel: interfaces, others' routes, whether ours are still there."""
        if self._port is not None:
            self._scanned = self._port.generation
            before, self.interfaces = self.interfaces, self._port.interfaces()
            if self._traces:
                self._trace_scan(before)
            self.scan_at = now + self._interval_s
            local = frozenset(address.address for i in self.interfaces for address in i.addresses)
            for afi, resolver in self._resolvers.items():
                if resolver.local != local:
                    resolver.local = local
                    self._tables[afi].igp_changed = True
        if self.direct is not None:
            self.direct.update(self.interfaces, now)
        for static in self.statics.values():
            static.update(self.interfaces, now)
        if self.kernel is not None:
            self.kernel.scan(self.interfaces, now)

    def _trace_scan(self, before: Sequence[Interface]) -> None:
        """Tell listeners what a scan of the interfaces brought."""
        device = self._traces.get(self._device)
        if device is not None:
            device.event("Scanning interfaces")
        for name in self._traces:
            self.trace_interfaces(name, before)

    def trace_interfaces(self, name: str, before: Sequence[Interface] = ()) -> None:
        """Tell a protocol's listener of the interfaces, as far as they are not as before."""
        trace = self._traces.get(name)
        if trace is None or name == self._device:
            return
        is_direct = self.direct is not None and name == self.direct.config.name
        trace_interfaces(trace, before, self.interfaces, with_addresses=is_direct)

    def link_to(self, address: int) -> str:
        """The interface on whose network an IPv4 address is, "" if there is none."""
        for interface in self.interfaces:
            for have in interface.addresses if interface.up else ():
                shift = 32 - have.length
                if (
                    len(have.address) == 4
                    and shift
                    and (int.from_bytes(have.address, "big") >> shift == address >> shift)
                ):
                    return interface.name
        return ""

    def scan_soon(self, now: float) -> None:
        """Look again at once instead of after the interval."""
        if self._port is not None:
            self.scan_at = now
            self._scanned = None


def _withdraw_all(protocol: StaticProtocol | DirectProtocol) -> None:
    for channel in protocol.channels.values():
        channel.withdraw(0, list(channel.received))
