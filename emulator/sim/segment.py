"""The physical network of simulated nodes: kernels joined through their underlay devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from emulator.addr import format_ip
from emulator.runtime.underlay import KernelDriver

if TYPE_CHECKING:
    from emulator.netstack.devices.underlay import Egress, Underlay
    from emulator.netstack.kernel import Kernel
    from emulator.sim.host import SimHost
    from emulator.sim.world import World


class _Port(NamedTuple):
    host: SimHost
    ip: int
    device: Underlay
    driver: KernelDriver


class Segment:
    """One Ethernet segment.  A host's kernel is plugged in with its NIC's address.

    The fabric decides what arrives: latency, loss, partitions and crashes act on packets as on
    everything else that passes between two hosts.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._ports: dict[str, _Port] = {}

    def plug(self, host: SimHost, kernel: Kernel, ip: int, dev: str = "eth0") -> None:
        """Join a kernel and run it; a host that comes back replaces its former kernel."""
        self.unplug(host)
        device: Underlay = kernel.root.device(dev)  # type: ignore[assignment]  # an underlay

        def drain() -> None:
            for item in device.take_egress():
                self._send(host, ip, item)

        driver = KernelDriver(kernel, loop=self._world.loop, drain=drain)
        for other in self._ports.values():
            device.peer_set(other.ip, other.device.mac)
            other.device.peer_set(ip, device.mac)
        self._ports[host.name] = _Port(host, ip, device, driver)
        driver.start()

    def unplug(self, host: SimHost) -> None:
        """Pull the plug: the kernel's timers stop too."""
        port = self._ports.pop(host.name, None)
        if port is not None:
            port.driver.stop()

    def _send(self, host: SimHost, source: int, item: Egress) -> None:
        def deliver(there: SimHost) -> None:
            port = self._ports.get(there.name)
            if port is None:
                return
            if item.kind == "vxlan":
                port.device.receive_vxlan(source, item.src_port, item.payload, item.segment_size)
            else:
                port.device.receive_carrier(item.payload, item.segment_size)
            port.driver.wake()

        size = len(item.payload)
        self._world.fabric.send(host, format_ip(item.dst_ip), size, item.kind, deliver)
