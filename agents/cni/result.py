"""What ADD answers: interfaces, addresses, routes (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from emulator.addr import Prefix, format_ip, parse_ip


class Interface(NamedTuple):
    """One link; ``sandbox`` is the namespace's path, empty for a link of the node."""

    name: str
    mac: str
    sandbox: str = ""


class AddressConf(NamedTuple):
    """One address of interface number ``interface`` of the result."""

    ip: int
    length: int
    gateway: int
    interface: int


class RouteConf(NamedTuple):
    """One route of the container; gateway 0 means the address's gateway."""

    dst: Prefix
    gateway: int = 0


@dataclass(frozen=True, slots=True)
class CniResult:
    """The outcome of ADD; ``to_json`` gives the form of the asked version."""

    interfaces: tuple[Interface, ...]
    ips: tuple[AddressConf, ...]
    routes: tuple[RouteConf, ...]

    @property
    def ip(self) -> str:
        """The pod's address as text."""
        return format_ip(self.ips[0].ip)

    def to_json(self, cni_version: str) -> dict[str, Any]:
        """SPEC.md "Success"; 0.2.0 and older know one IPv4 address and no interfaces."""
        routes = [
            {"dst": str(route.dst), **({"gw": format_ip(route.gateway)} if route.gateway else {})}
            for route in self.routes
        ]
        if _version_tuple(cni_version) < (0, 3):
            first = self.ips[0]
            return {
                "cniVersion": cni_version,
                "ip4": {
                    "ip": f"{format_ip(first.ip)}/{first.length}",
                    "gateway": format_ip(first.gateway),
                    "routes": routes,
                },
                "dns": {},
            }
        version = {"version": "4"} if _version_tuple(cni_version) < (1, 0) else {}
        return {
            "cniVersion": cni_version,
            "interfaces": [
                {
                    "name": link.name,
                    "mac": link.mac,
                    **({"sandbox": link.sandbox} if link.sandbox else {}),
                }
                for link in self.interfaces
            ],
            "ips": [
                {
                    **version,
                    "interface": address.interface,
                    "address": f"{format_ip(address.ip)}/{address.length}",
                    "gateway": format_ip(address.gateway),
                }
                for address in self.ips
            ],
            "routes": routes,
            "dns": {},
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> CniResult:
        """Read what ``to_json`` gives."""
        routes = document.get("routes", document.get("ip4", {}).get("routes", []))
        if "ip4" in document:
            old = document["ip4"]
            addresses = [{"address": old["ip"], "gateway": old["gateway"], "interface": 0}]
        else:
            addresses = document["ips"]
        return cls(
            tuple(
                Interface(link["name"], link["mac"], link.get("sandbox", ""))
                for link in document.get("interfaces", ())
            ),
            tuple(
                AddressConf(
                    parse_ip(address["address"].partition("/")[0]),
                    int(address["address"].partition("/")[2]),
                    parse_ip(address["gateway"]),
                    address.get("interface", 0),
                )
                for address in addresses
            ),
            tuple(
                RouteConf(
                    Prefix.parse(route["dst"]), parse_ip(route["gw"]) if route.get("gw") else 0
                )
                for route in routes
            ),
        )


def _version_tuple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
