"""Addresses and node ports of Services: reserved before the write, undone if it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.apiserver.allocators import ip_pool, port_pool
from emulator.addr import format_ip, parse_ip
from emulator.apimachinery import fielderrors as fe
from emulator.apimachinery.gotext import string_list
from emulator.apimachinery.objects import dig, items, name_of, namespace_of, sub
from emulator.apimachinery.status import internal, invalid
from emulator.errors import ExhaustedError, UsageError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from agents.apiserver.allocators import Pool
    from emulator.apimachinery.objects import Obj

_WITH_PORTS = ("NodePort", "LoadBalancer")


def _ips(obj: Obj) -> list[int]:
    out: list[int] = []
    for text in items(obj, "spec", "clusterIPs") or [dig(obj, "spec", "clusterIP")]:
        if text and text != "None":
            try:
                out.append(parse_ip(text))
            except UsageError:
                continue
    return out


def _ports(obj: Obj) -> list[int]:
    found = [p["nodePort"] for p in items(obj, "spec", "ports") if p.get("nodePort")]
    health = dig(obj, "spec", "healthCheckNodePort")
    return list(dict.fromkeys(found + ([health] if health else [])))


def _held(pool: Pool, value: int, owner: str) -> bool:
    """Take a value unless its owner has it already; False if it is out of range or another's."""
    return value in pool and (pool.owner(value) == owner or pool.reserve(value, owner))


class Reservation:
    """What one request took; exactly one of ``keep`` and ``undo`` is called."""

    __slots__ = ("_addresses", "_new_ips", "_new_ports", "_old_ips", "_old_ports")

    def __init__(self, addresses: ServiceAddresses) -> None:
        self._addresses = addresses
        self._new_ips: list[int] = []
        self._new_ports: list[int] = []
        self._old_ips: list[int] = []
        self._old_ports: list[int] = []

    def took_ip(self, value: int) -> None:
        """Remember a new address."""
        self._new_ips.append(value)

    def took_port(self, value: int) -> None:
        """Remember a new port."""
        self._new_ports.append(value)

    def gives_up(self, ips: Iterable[int], ports: Iterable[int]) -> None:
        """Remember what is free once the write has succeeded."""
        self._old_ips += ips
        self._old_ports += ports

    def keep(self) -> None:
        """The write succeeded."""
        self._addresses.free(self._old_ips, self._old_ports)

    def undo(self) -> None:
        """The write failed, or was a dry run."""
        self._addresses.free(self._new_ips, self._new_ports)


class ServiceAddresses:
    """The cluster's two ranges."""

    def __init__(self, cidr: str, ports: tuple[int, int], rng: random.Random) -> None:
        self._cidr = cidr
        self._range = ports
        self._ips = ip_pool(cidr, rng)
        self._ports = port_pool(*ports, rng)

    @property
    def first_ip(self) -> str:
        """The address of the ``kubernetes`` Service: the first of the range."""
        return format_ip(self._ips.first)

    def adopt(self, services: Iterable[Obj]) -> list[str]:
        """Take what stored Services hold; return what is wrong with them, for the log.

        Safe to repeat, and repeated: a write that was cut off midway may have been applied after
        its addresses were given back.
        """
        problems: list[str] = []
        for obj in services:
            owner = f"{namespace_of(obj)}/{name_of(obj)}"
            problems += [
                f"service {owner}: {format_ip(ip)} is out of range or taken"
                for ip in _ips(obj)
                if not _held(self._ips, ip, owner)
            ]
            problems += [
                f"service {owner}: node port {port} is out of range or taken"
                for port in _ports(obj)
                if not _held(self._ports, port, owner)
            ]
        return problems

    def free(self, ips: Iterable[int], ports: Iterable[int]) -> None:
        """Give values back."""
        for ip in ips:
            self._ips.free(ip)
        for port in ports:
            self._ports.free(port)

    def release(self, obj: Obj) -> None:
        """Give back what a deleted Service held."""
        owner = f"{namespace_of(obj)}/{name_of(obj)}"
        self.free(
            [ip for ip in _ips(obj) if self._ips.owner(ip) == owner],
            [port for port in _ports(obj) if self._ports.owner(port) == owner],
        )

    def reserve(self, new: Obj, old: Obj | None) -> Reservation:
        """Take what ``new`` asks for or needs, filling it in.

        Raises StatusError 422 or 500 with nothing taken.
        """
        taken = Reservation(self)
        try:
            self._reserve_ip(new, old, taken)
            self._reserve_ports(new, old, taken)
        except BaseException:
            taken.undo()
            raise
        kept_ips, kept_ports = _ips(new), _ports(new)
        if old is not None:
            taken.gives_up(
                [ip for ip in _ips(old) if ip not in kept_ips],
                [port for port in _ports(old) if port not in kept_ports],
            )
        return taken

    def _invalid(self, obj: Obj, field: str, value: Any, why: str) -> Exception:
        return invalid("Service", "", name_of(obj), [fe.invalid(field, value, why)])

    def _reserve_ip(self, new: Obj, old: Obj | None, taken: Reservation) -> None:
        spec = sub(new, "spec")
        if spec.get("type") == "ExternalName":
            for key in ("clusterIP", "clusterIPs"):
                spec.pop(key, None)
            return
        wanted = spec.get("clusterIP") or (spec.get("clusterIPs") or [""])[0]
        if wanted == "None":
            spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
            return
        owner = f"{namespace_of(new)}/{name_of(new)}"
        if not wanted:
            try:
                value = self._ips.allocate(owner)
            except ExhaustedError as error:
                raise internal(f"failed to allocate a serviceIP: {error}") from None
            taken.took_ip(value)
            wanted = format_ip(value)
        elif old is None or parse_ip(wanted) not in _ips(old):
            value = parse_ip(wanted)
            shown = fe.Text(string_list([wanted]))
            if value not in self._ips:
                raise self._invalid(
                    new,
                    "spec.clusterIPs",
                    shown,
                    f"failed to allocate IP {wanted}: the provided IP ({wanted}) is not in the "
                    f"valid range. The range of valid IPs is {self._cidr}",
                )
            if not self._ips.reserve(value, owner):
                raise self._invalid(
                    new,
                    "spec.clusterIPs",
                    shown,
                    f"failed to allocate IP {wanted}: provided IP is already allocated",
                )
            taken.took_ip(value)
        spec["clusterIP"], spec["clusterIPs"] = wanted, [wanted]

    def _reserve_ports(self, new: Obj, old: Obj | None, taken: Reservation) -> None:
        spec = new["spec"]
        if spec.get("type") not in _WITH_PORTS or (
            spec.get("type") == "LoadBalancer"
            and spec.get("allocateLoadBalancerNodePorts") is False
        ):
            return
        owner = f"{namespace_of(new)}/{name_of(new)}"
        mine = _ports(old) if old is not None else []
        ports = items(new, "spec", "ports")
        for i, port in enumerate(ports):
            wanted = port.get("nodePort")
            if not wanted or wanted in mine:
                continue
            where = f"spec.ports[{i}].nodePort"
            if wanted not in self._ports:
                low, high = self._range
                raise self._invalid(
                    new,
                    where,
                    wanted,
                    "provided port is not in the valid range. The range of valid ports is "
                    f"{low}-{high}",
                )
            if not self._ports.reserve(wanted, owner):
                raise self._invalid(new, where, wanted, "provided port is already allocated")
            taken.took_port(wanted)
            mine.append(wanted)
        for port in ports:
            if port.get("nodePort"):
                continue
            shared = self._shared(ports, port)
            if shared:
                port["nodePort"] = shared
                continue
            try:
                value = self._ports.allocate(owner)
            except ExhaustedError as error:
                raise internal(f"failed to allocate a nodePort: {error}") from None
            taken.took_port(value)
            port["nodePort"] = value

    @staticmethod
    def _shared(ports: list[Obj], port: Obj) -> int:
        """The node port of the same port number under another protocol, 0 if there is none."""
        for other in ports:
            if (
                other is not port
                and other.get("port") == port.get("port")
                and other.get("protocol") != port.get("protocol")
                and other.get("nodePort")
            ):
                return int(other["nodePort"])
        return 0
