"""What a node shows of itself over its control socket: captures and traces."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from agents.node import probes
from agents.node.probes import Probe
from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.wire import pcapng

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from emulator.netstack.kernel import Kernel
    from emulator.netstack.sock.ping import PingSocket
    from emulator.netstack.trace import TraceBuffer
    from emulator.runtime.control import Call, Handler
    from emulator.runtime.role import RoleEnv

# Bytes of frames a slow reader has not taken yet; more are counted as lost, as by a full capture
# buffer.  All of them, and what the file says of each, go into one control frame.
MAX_CAPTURE_BYTES: Final = 8 * 1024 * 1024
FRAME_OVERHEAD: Final = 64
# Pings planned and not yet sent: a person runs one trace at a time.
MAX_PLANNED_PINGS: Final = 16


class Observer:
    """Captures and traces of one kernel."""

    def __init__(self, kernel: Kernel, env: RoleEnv) -> None:
        self._kernel = kernel
        self._env = env
        self._pings: dict[int, PingSocket] = {}
        self._trace: TraceBuffer | None = None

    def handlers(self) -> dict[str, Handler]:
        """Method → handler, for the control server."""
        return {
            "capture": self.capture,
            "netns": self.netns,
            "probe_plan": self.probe_plan,
            "trace_arm": self.trace_arm,
            "probe": self.probe,
            "trace_collect": self.trace_collect,
        }

    async def capture(self, call: Call) -> AsyncGenerator[object, None]:
        """``{"netns", "device", "count"}``: yields ``{"data": pcapng, "packets", "dropped"}``.

        The first item also says ``listening``, the last ``gone`` if the device was taken out;
        count 0 means until the caller goes away.  ``dropped`` counts what a slow caller missed.
        """
        kernel = self._kernel
        ns = kernel.netns(call.param("netns", str, "") or kernel.root.name)
        device = call.param("device", str)
        count = call.param("count", int, 0)
        frames: list[tuple[float, bytes, bool]] = []
        arrived = asyncio.Event()
        dropped = held = 0
        gone = False

        def sink(at: float, frame: bytes, outbound: bool) -> None:
            nonlocal dropped, held
            size = len(frame) + FRAME_OVERHEAD
            if held + size > MAX_CAPTURE_BYTES:
                dropped += 1
                return
            held += size
            frames.append((at, frame, outbound))
            arrived.set()

        def on_gone() -> None:
            nonlocal gone
            gone = True
            arrived.set()

        handle = kernel.capture(ns, device, sink, on_gone)
        try:
            linktype = pcapng.LINKTYPE_ETHERNET if handle.ethernet else pcapng.LINKTYPE_RAW
            place = f"{device} of {kernel.hostname}" + ("" if ns is kernel.root else f" {ns.name}")
            header = pcapng.section_header() + pcapng.interface(
                device, description=place, linktype=linktype
            )
            yield {"data": header, "packets": 0, "dropped": 0, "listening": place}
            sent = 0
            epoch = self._env.clock.time() - self._env.clock.monotonic()
            while count == 0 or sent < count:
                await arrived.wait()
                arrived.clear()
                taken = frames[: count - sent] if count else list(frames)
                frames.clear()
                held = 0
                sent += len(taken)
                data = b"".join(
                    pcapng.packet(0, epoch + at, frame, outbound=outbound)
                    for at, frame, outbound in taken
                )
                yield {"data": data, "packets": len(taken), "dropped": dropped, "gone": gone}
                if gone:
                    return
        finally:
            handle.close()

    async def netns(self, call: Call) -> list[dict[str, Any]]:
        """Every namespace as ``{"name", "addresses", "devices"}``; the first is the node's own."""
        kernel = self._kernel
        spaces = [kernel.root] + [
            kernel.netns(name) for name in kernel.netns_names() if name != kernel.root.name
        ]
        return [
            {
                "name": ns.name,
                "addresses": [format_ip(info.ip) for info in ns.addrs()],
                "devices": [info.name for info in ns.links()],
            }
            for ns in spaces
        ]

    async def probe_plan(self, call: Call) -> dict[str, Any]:
        """``{"src", "dst", "port", "udp"}``: what will recognize the probe; a ping's port is 0."""
        request = {
            "src": call.param("src", str),
            "dst": call.param("dst", str),
            "port": call.param("port", int),
            "udp": call.param("udp", bool, False),
        }
        parse_ip(request["dst"])
        ns = probes.namespace_of(self._kernel, parse_ip(request["src"]))
        if request["port"]:
            probe = probes.plan(request, self._env.rng, None)
        else:
            if len(self._pings) >= MAX_PLANNED_PINGS:
                self._pings.pop(next(iter(self._pings))).close()
            sock = ns.sockets.ping_open()
            self._pings[sock.ident] = sock
            probe = probes.plan(request, self._env.rng, sock)
        return {**_as_dict(probe), "description": probe.description}

    async def trace_arm(self, call: Call) -> None:
        """``{"probe"}``: from now on write down what happens to it here."""
        self._trace = self._kernel.trace_arm(_probe_of(call).filter())

    async def probe(self, call: Call) -> dict[str, Any]:
        """``{"probe", "timeout_s"}``: send it; returns ``{"ok", "text"}``."""
        probe = _probe_of(call)
        timeout_s = float(call.param("timeout_s", float, 1.0))
        ns = probes.namespace_of(self._kernel, parse_ip(probe.src))
        if probe.kind == "tcp":
            answer = await probes.send_tcp(ns, probe, timeout_s)
        elif probe.kind == "udp":
            answer = await probes.send_udp(ns, probe, timeout_s)
        else:
            sock = self._pings.pop(probe.ident, None)
            if sock is None:
                raise UsageError("the probe was not planned here, or too many were since")
            try:
                answer = await probes.send_ping(sock, probe, timeout_s)
            finally:
                sock.close()
        return answer._asdict()

    async def trace_collect(self, call: Call) -> list[dict[str, Any]]:
        """The steps since ``trace_arm``, each as a map; tracing ends."""
        trace, self._trace = self._trace, None
        if trace is None:
            return []
        trace.disarm()
        return [step._asdict() for step in trace.take()]


def _probe_of(call: Call) -> Probe:
    value = dict(call.param("probe", dict))
    value.pop("description", None)
    return Probe.parse(value)


def _as_dict(probe: Probe) -> dict[str, Any]:
    return {name: getattr(probe, name) for name in Probe.__slots__}
