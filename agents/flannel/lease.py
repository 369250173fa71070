"""Leases as etcd holds them: keys, values and what an agent makes of them; pure.

Key ``<prefix>/subnets/10.2.59.0-24`` (dual stack: ``10.12.13.0-24&fd00:12:13::-56``), value JSON
in the field order of Go's struct without blanks.  Every era is read; which one is written follows
the profile (flannel, pkg/subnet/subnet.go and pkg/backend/vxlan).
"""

from __future__ import annotations

import functools
import ipaddress
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from emulator.addr import Prefix, format_ip, format_mac, parse_ip, parse_mac
from emulator.errors import UsageError, WireError

if TYPE_CHECKING:
    from agents.flannel.config import Profile

_KEY: Final = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?")
# Every change makes an agent look at all leases again; more nodes than this only cost time.
MAX_REMEMBERED: Final = 1024
# Far more than any backend's data; what is longer is not a lease.
MAX_VALUE_BYTES: Final = 16 * 1024


class LeaseKey(NamedTuple):
    """The last element of a lease's key; ``ipv6`` is "" for an IPv4 node."""

    subnet: Prefix
    ipv6: str = ""


class VxlanData(NamedTuple):
    """BackendData of a vxlan lease; ``vni`` is 0 where the value predates flannel 0.14."""

    vni: int
    vtep_mac: bytes


@dataclass(frozen=True, slots=True)
class LeaseAttrs:
    """What a node tells the others; ``backend_data`` is compact JSON text, "" if absent."""

    public_ip: int
    backend_type: str = ""
    backend_data: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """One subnet held by one node.

    ``expires_at`` is in seconds of the agent's clock, None for a reservation (a key without an
    etcd lease, which never expires).
    """

    subnet: Prefix
    attrs: LeaseAttrs
    etcd_lease: int = 0
    mod_revision: int = 0
    expires_at: float | None = None
    ipv6: str = ""

    @property
    def is_reservation(self) -> bool:
        """True if nobody need renew it."""
        return self.etcd_lease == 0


def format_key(subnet: Prefix, ipv6: str = "") -> str:
    """Return ``10.2.59.0-24`` or ``10.2.59.0-24&fd00::-64``."""
    text = f"{format_ip(subnet.network)}-{subnet.length}"
    return f"{text}&{ipv6.replace('/', '-')}" if ipv6 else text


def parse_key(text: str) -> LeaseKey | None:
    """Read the last element of a key; None for anything flannel would skip."""
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    address, length, address6, length6 = match.groups()
    try:
        subnet = Prefix.parse(f"{address}/{length}", strict=False)
        ipv6 = ""
        if address6 is not None:
            ipv6 = str(ipaddress.IPv6Network(f"{address6}/{length6}", strict=False))
    except (UsageError, ValueError):
        return None
    return LeaseKey(subnet, ipv6)


def format_value(attrs: LeaseAttrs, profile: Profile = "modern") -> bytes:
    """Return the value's exact bytes; ``2017`` leaves out what flannel 0.15 added."""
    parts = [f'"PublicIP":"{format_ip(attrs.public_ip)}"']
    if profile == "modern":
        parts.append('"PublicIPv6":null')
    if attrs.backend_type:
        parts.append(f'"BackendType":"{attrs.backend_type}"')
    if attrs.backend_data:
        parts.append(f'"BackendData":{attrs.backend_data}')
    return ("{" + ",".join(parts) + "}").encode()


def format_vxlan_data(vni: int, mac: bytes, profile: Profile = "modern") -> str:
    """Return BackendData of a vxlan lease; ``2017`` knows no VNI field."""
    text = f'"VtepMAC":"{format_mac(mac)}"'
    return f'{{"VNI":{vni},{text}}}' if profile == "modern" else f"{{{text}}}"


def parse_value(data: bytes) -> LeaseAttrs:
    """Read a lease's value of any era; raises WireError."""
    fields = _object(data, "lease value")
    public_ip = fields.get("publicip")
    if not isinstance(public_ip, str):
        raise WireError("lease value has no PublicIP")
    try:
        address = parse_ip(public_ip)
    except UsageError as error:
        raise WireError(f"PublicIP of a lease: {error}") from None
    kind = fields.get("backendtype") or ""
    if not isinstance(kind, str):
        raise WireError("BackendType of a lease is not a string")
    backend_data = fields.get("backenddata")
    text = "" if backend_data is None else json.dumps(backend_data, separators=(",", ":"))
    return LeaseAttrs(address, kind, text)


@functools.lru_cache(maxsize=MAX_REMEMBERED)
def parse_vxlan_data(text: str) -> VxlanData:
    """Read BackendData of a vxlan lease; raises WireError."""
    fields = _object(text.encode(), "BackendData of a vxlan lease")
    mac, vni = fields.get("vtepmac"), fields.get("vni", 0)
    if not isinstance(mac, str) or not isinstance(vni, int):
        raise WireError("BackendData of a vxlan lease has no VtepMAC")
    try:
        return VxlanData(vni, parse_mac(mac))
    except UsageError as error:
        raise WireError(f"VtepMAC of a lease: {error}") from None


def _object(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > MAX_VALUE_BYTES:
        raise WireError(f"{what} has {len(data)} bytes (at most {MAX_VALUE_BYTES})")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise WireError(f"{what} is not JSON: {error}") from None
    except RecursionError:
        raise WireError(f"{what} is nested too deeply") from None
    if not isinstance(document, dict):
        raise WireError(f"{what} is not a JSON object")
    return {key.lower(): value for key, value in document.items()}
