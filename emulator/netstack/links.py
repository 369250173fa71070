"""The link verbs of a namespace: ``ip link add|del|set`` and ``bridge fdb``.

Error texts are iproute2's (6.1) around the kernel's extack messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import ZERO_MAC
from emulator.errors import UsageError
from emulator.netstack.devices.bridge import MAX_PORTS, Bridge
from emulator.netstack.devices.fdb import AGEING_S, FdbEntry
from emulator.netstack.devices.plain import Dummy, Loopback, Veth
from emulator.netstack.devices.tunnel import Ipip, Vxlan
from emulator.netstack.devices.underlay import Underlay
from emulator.netstack.records import FdbInfo, LinkInfo
from emulator.wire import vxlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.netstack.devices.base import Device
    from emulator.netstack.netns import NetNs

# Devices of one namespace: 110 pods of a node and what they hang on, with room to experiment.
MAX_DEVICES: Final = 4096
NAME_MAX: Final = 15  # IFNAMSIZ less the NUL
MAX_PORT: Final = 65535

EXISTS: Final = "RTNETLINK answers: File exists"
NOT_SUPPORTED: Final = "RTNETLINK answers: Operation not supported"
INVALID: Final = "RTNETLINK answers: Invalid argument"
NO_ENTRY: Final = "RTNETLINK answers: No such file or directory"


def _int(attrs: Mapping[str, object], key: str, default: int) -> int:
    value = attrs.get(key, default)
    if not isinstance(value, int):
        raise UsageError(f"link attribute {key} must be a number, not {value!r}")
    return int(value)


def _str(attrs: Mapping[str, object], key: str) -> str:
    value = attrs.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"link attribute {key} must be text, not {value!r}")
    return value


class Links:
    """The devices of one namespace."""

    def __init__(self, ns: NetNs) -> None:
        self._ns = ns
        self.by_name: dict[str, Device] = {}
        self._next_index = 1

    def get(self, name: str) -> Device:
        """Return a device; UsageError if there is none of that name."""
        device = self.by_name.get(name)
        if device is None:
            raise UsageError(f'Cannot find device "{name}"')
        return device

    def sorted(self) -> list[Device]:
        """The devices by index."""
        return sorted(self.by_name.values(), key=lambda device: device.index)

    # -- add -------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        kind: str,
        mac: bytes | None,
        mtu: int | None,
        attrs: Mapping[str, object],
    ) -> LinkInfo:
        """``ip link add``; UsageError with the real text."""
        self._check_name(name)
        kernel = self._ns.kernel
        address = mac if mac is not None else kernel.random_mac()
        device: Device
        match kind:
            case "veth":
                return self._add_veth(name, address, mtu, attrs)
            case "bridge":
                device = Bridge(self._ns, name, address, mac_given=mac is not None)
                device.fdb.ageing_s = _int(attrs, "ageing_s", AGEING_S)
                device.fdb.entries[address] = FdbEntry(address, local=True)
            case "vxlan":
                device = self._make_vxlan(name, address, attrs)
            case "ipip":
                device = self._make_ipip(name, attrs)
            case "dummy":
                device = Dummy(self._ns, name, address)
            case "lo":
                device = Loopback(self._ns, name, ZERO_MAC)
            case "underlay":
                device = Underlay(
                    self._ns,
                    name,
                    address,
                    vxlan_port=_int(attrs, "vxlan_port", vxlan.PORT_LINUX),
                )
                peers = attrs.get("ip_map", {})
                assert isinstance(peers, dict)
                for ip, peer_mac in peers.items():
                    device.peer_set(ip, peer_mac)
            case _:
                raise UsageError("Error: Unknown device type.")
        self._register(device, mtu, attrs)
        if isinstance(device, Vxlan):
            self._ns.vteps[device.port, device.vni] = device
        elif isinstance(device, Ipip):
            self._ns.tunnels.append(device)
        return device.info()

    def _check_name(self, name: str) -> None:
        if not name or len(name) > NAME_MAX or "/" in name or name.split() != [name]:
            raise UsageError(f'Error: argument "{name}" is wrong: "name" not a valid ifname')
        if name in (".", ".."):
            raise UsageError(f'Error: argument "{name}" is wrong: "name" not a valid ifname')
        if name in self.by_name:
            raise UsageError(EXISTS)
        if len(self.by_name) >= MAX_DEVICES:
            raise UsageError("RTNETLINK answers: Cannot allocate memory")

    def _register(
        self, device: Device, mtu: int | None, attrs: Mapping[str, object], index: int = 0
    ) -> None:
        if mtu is not None:
            self._check_mtu(device, mtu)
            device.mtu = mtu
        device.txqlen = _int(attrs, "txqlen", device.txqlen)
        self.adopt(device, index)
        self._ns.kernel.invalidate_flows()

    def adopt(self, device: Device, index: int = 0) -> None:
        """Put a device under its name and an index, ``index`` if that is free."""
        taken = {each.index for each in self.by_name.values()}
        if not index or index in taken:
            while self._next_index in taken:
                self._next_index += 1
            index = self._next_index
            self._next_index += 1
        device.index = index
        self.by_name[device.name] = device
        self._ns.sysctl.device_added(device.name)

    def _add_veth(
        self, name: str, mac: bytes, mtu: int | None, attrs: Mapping[str, object]
    ) -> LinkInfo:
        target = attrs.get("peer_ns")
        other = self._ns if target is None else self._ns.kernel.as_netns(target)
        peer_name = _str(attrs, "peer") or other.link_table.free_name("veth")
        if other is self._ns and peer_name == name:
            raise UsageError(EXISTS)
        other.link_table._check_name(peer_name)
        peer_mac = attrs.get("peer_mac")
        assert peer_mac is None or isinstance(peer_mac, bytes)
        near = Veth(self._ns, name, mac)
        far = Veth(other, peer_name, peer_mac or self._ns.kernel.random_mac())
        near.peer, far.peer = far, near
        if mtu is not None:
            self._check_mtu(near, mtu)
        # veth_newlink registers the peer first.
        other.link_table._register(far, mtu, attrs)
        self._register(near, mtu, attrs)
        return near.info()

    def free_name(self, stem: str) -> str:
        """The first free name of a stem: veth0, veth1 …"""
        number = 0
        while f"{stem}{number}" in self.by_name:
            number += 1
        return f"{stem}{number}"

    def _make_ipip(self, name: str, attrs: Mapping[str, object]) -> Ipip:
        local, remote = _int(attrs, "local", 0), _int(attrs, "remote", 0)
        if any((each.local, each.remote) == (local, remote) for each in self._ns.tunnels):
            raise UsageError(EXISTS)
        ttl = _int(attrs, "ttl", 0)
        if not 0 <= ttl <= 255:
            raise UsageError(f'Error: argument "{ttl}" is wrong: invalid TTL')
        return Ipip(self._ns, name, local=local, remote=remote, ttl=ttl)

    def _make_vxlan(self, name: str, mac: bytes, attrs: Mapping[str, object]) -> Vxlan:
        vni = _int(attrs, "vni", 0)
        port = _int(attrs, "port", 8472)
        if not 0 <= vni < 1 << 24:
            raise UsageError(f'Error: argument "{vni}" is wrong: invalid id')
        srcport = attrs.get("srcport", (0, 0))
        assert isinstance(srcport, tuple)
        ttl = _int(attrs, "ttl", 0)
        for label, number, most in (
            ("dst port", port, MAX_PORT),
            *(("source port", each, MAX_PORT) for each in srcport),
            ("TTL", ttl, 255),
        ):
            if not 0 <= number <= most:
                raise UsageError(f'Error: argument "{number}" is wrong: invalid {label}')
        if srcport[0] > srcport[1]:
            raise UsageError(INVALID)
        if (port, vni) in self._ns.vteps:
            raise UsageError("Error: A VXLAN device with the specified VNI already exists.")
        lower = _str(attrs, "dev")
        if lower:
            self.get(lower)
        device = Vxlan(
            self._ns,
            name,
            mac,
            vni=vni,
            local=_int(attrs, "local", 0),
            lower=lower,
            port=port,
            learning=bool(attrs.get("learning", True)),
            srcport=srcport,
            ttl=ttl,
            ageing_s=_int(attrs, "ageing_s", AGEING_S),
        )
        if lower:
            # vxlan_config_apply: what the lower device leaves after the headers.
            device.mtu = self.get(lower).mtu - 50
        remote = _int(attrs, "remote", 0)
        if remote:
            device.fdb.entries[ZERO_MAC] = FdbEntry(ZERO_MAC, dst=remote, permanent=True)
        return device

    # -- del -------------------------------------------------------------------------------------

    def delete(self, name: str) -> None:
        """``ip link del``; a veth takes its peer along."""
        device = self.get(name)
        if device.kind in ("lo", "underlay"):
            raise UsageError(NOT_SUPPORTED)
        self.remove(device)

    def remove(self, device: Device) -> None:
        """Take a device out with everything that hangs on it."""
        if self.by_name.get(device.name) is not device:
            return
        self.set_up(device, False)
        self._detach(device)
        if device.master is not None:
            device.master.port_del(device)
        device.destroy()
        del self.by_name[device.name]
        self._ns.sysctl.device_removed(device.name)
        self._ns.kernel.invalidate_flows()
        for tell in device.on_removed:
            tell()

    def _detach(self, device: Device) -> None:
        """Addresses, routes and neighbours go with a device."""
        self._ns.addressing.forget_device(device)
        self._ns.neigh.flush_device(device)

    # -- set -------------------------------------------------------------------------------------

    def set(
        self,
        name: str,
        *,
        up: bool | None,
        mtu: int | None,
        master: str | None,
        mac: bytes | None,
        hairpin: bool | None,
        netns: object,
        new_name: str | None,
        txqlen: int | None,
    ) -> None:
        """``ip link set``; the parts are applied in the order the kernel takes them."""
        device = self.get(name)
        if mtu is not None:
            self._check_mtu(device, mtu)
        if netns is not None:
            self._move(device, self._ns.kernel.as_netns(netns))
            # The rest is said to the device where it is now.
            device.ns.link_table.set(
                device.name,
                up=up,
                mtu=mtu,
                master=master,
                mac=mac,
                hairpin=hairpin,
                netns=None,
                new_name=new_name,
                txqlen=txqlen,
            )
            return
        if mac is not None:
            self._set_mac(device, mac)
        if mtu is not None:
            device.mtu = mtu
        if txqlen is not None:
            device.txqlen = txqlen
        if new_name is not None and new_name != device.name:
            self._rename(device, new_name)
        if master is not None:
            self._enslave(device, master)
        if hairpin is not None:
            if device.master is None:
                raise UsageError(NOT_SUPPORTED)
            device.hairpin = hairpin
        if up is not None:
            self.set_up(device, up)
        device.on_change()
        self._ns.kernel.invalidate_flows()

    @staticmethod
    def _check_mtu(device: Device, mtu: int) -> None:
        if mtu < device.min_mtu:
            raise UsageError("Error: mtu less than device minimum.")
        if mtu > device.max_mtu:
            raise UsageError("Error: mtu greater than device maximum.")

    def _set_mac(self, device: Device, mac: bytes) -> None:
        if not device.ethernet or device.kind == "lo":
            raise UsageError(NOT_SUPPORTED)
        if len(mac) != 6 or mac[0] & 1 or mac == ZERO_MAC:
            raise UsageError("RTNETLINK answers: Cannot assign requested address")
        master = device.master
        if isinstance(device, Bridge):
            device.set_mac(mac)
            return
        device.mac = mac
        if master is not None:
            hairpin = device.hairpin
            master.port_del(device)
            master.port_add(device)
            device.hairpin = hairpin

    def _rename(self, device: Device, new_name: str) -> None:
        self._check_name(new_name)
        old = device.name
        master = device.master
        del self.by_name[old]
        device.name = new_name
        self.by_name[new_name] = device
        if master is not None:
            master.ports = {port.name: port for port in master.ports.values()}
        self._ns.addressing.rename_device(old, new_name)
        self._ns.sysctl.device_renamed(old, new_name)

    def _enslave(self, device: Device, master: str) -> None:
        current = device.master
        if not master:
            if current is not None:
                current.port_del(device)
            return
        bridge = self.get(master)
        if not isinstance(bridge, Bridge):
            raise UsageError(NOT_SUPPORTED)
        if current is bridge:
            return
        # br_add_if: no loopback, no bridge in a bridge, nothing without Ethernet.
        if device.kind in ("lo",) or not device.ethernet:
            raise UsageError(INVALID)
        if isinstance(device, Bridge):
            raise UsageError("Error: Can not enslave a bridge to a bridge.")
        if len(bridge.ports) >= MAX_PORTS:
            raise UsageError("RTNETLINK answers: Exchange full")
        if current is not None:
            current.port_del(device)
        bridge.port_add(device)

    def set_up(self, device: Device, up: bool) -> None:
        """Bring a device up or down, and what depends on it."""
        if device.up == up:
            return
        device.up = up
        device.ever_up = device.ever_up or up
        ns = self._ns
        if up:
            ns.addressing.device_up(device)
        else:
            ns.addressing.device_down(device)
            ns.neigh.flush_device(device)
            gone = getattr(ns.netfilter, "device_gone", None)
            if gone is not None:
                gone(device.name)
        if device.master is not None:
            device.master.port_changed()
        device.on_change()
        ns.kernel.invalidate_flows()

    def _move(self, device: Device, to: NetNs) -> None:
        """Give a device to another namespace: it goes down and loses addresses and routes."""
        if to is self._ns:
            return
        if device.kind in ("lo", "bridge"):
            raise UsageError("Error: The interface netns is immutable.")
        if device.name in to.link_table.by_name:
            raise UsageError(EXISTS)
        self.set_up(device, False)
        self._detach(device)
        if device.master is not None:
            device.master.port_del(device)
        del self.by_name[device.name]
        self._ns.sysctl.device_removed(device.name)
        device.ns = to
        to.link_table.adopt(device, device.index)
        self._ns.kernel.invalidate_flows()

    # -- fdb -------------------------------------------------------------------------------------

    def fdb_replace(self, dev: str, mac: bytes, dst: int | None, *, exclusive: bool) -> None:
        """``bridge fdb replace|add``: of a vxlan device with ``dst``, else of a bridge port."""
        device = self.get(dev)
        now = self._ns.kernel.clock()
        if isinstance(device, Vxlan):
            if dst is None:
                raise UsageError(INVALID)
            fdb, entry = device.fdb, FdbEntry(mac, dst=dst, permanent=True, now=now)
        elif device.master is not None:
            fdb, entry = device.master.fdb, FdbEntry(mac, port=device, permanent=True, now=now)
        else:
            raise UsageError(NOT_SUPPORTED)
        if exclusive and mac in fdb.entries:
            raise UsageError(EXISTS)
        fdb.entries[mac] = entry
        self._ns.kernel.invalidate_flows()

    def fdb_del(self, dev: str, mac: bytes) -> None:
        """``bridge fdb del``."""
        device = self.get(dev)
        fdb = device.fdb if isinstance(device, Vxlan) else None
        if fdb is None and device.master is not None:
            fdb = device.master.fdb
        if fdb is None or mac not in fdb.entries:
            raise UsageError(NO_ENTRY)
        del fdb.entries[mac]
        self._ns.kernel.invalidate_flows()

    def fdb_dump(self) -> tuple[FdbInfo, ...]:
        """Every entry, by device index and MAC."""
        now = self._ns.kernel.clock()
        rows: list[tuple[int, FdbInfo]] = []
        for device in self.sorted():
            if isinstance(device, Vxlan):
                rows += [
                    (
                        device.index,
                        FdbInfo(
                            *(e.mac, device.name, e.dst, "", e.permanent, True),
                            age_s=now - e.updated_at,
                        ),
                    )
                    for e in device.fdb.entries.values()
                ]
            elif isinstance(device, Bridge):
                rows += [
                    (
                        e.port.index,
                        FdbInfo(
                            *(e.mac, e.port.name, None, device.name, e.permanent, False),
                            age_s=now - e.updated_at,
                        ),
                    )
                    for e in device.fdb.entries.values()
                    if e.port is not None
                ]
        rows.sort(key=lambda row: (row[0], row[1].mac))
        return tuple(info for _, info in rows)
