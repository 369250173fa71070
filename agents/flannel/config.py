"""The network configuration at ``<prefix>/config``; pure.

Keys are matched without regard to case and unknown keys are ignored, as Go's JSON decoder does
(flannel, pkg/subnet/config.go).  Two sets of rules exist: those of today and those of flannel 0.7.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from emulator.addr import Prefix, format_ip, mask_of, parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

Profile = Literal["modern", "2017"]

DEFAULT_VNI: Final = 1
# Linux's default vxlan port, which flannel keeps; IANA's is 4789.
VXLAN_PORT: Final = 8472
# Outer Ethernet, IPv4, UDP and VXLAN headers.
VXLAN_OVERHEAD: Final = 50
# A larger document is not a flannel configuration; etcd's own limit is 1.5 MiB.
MAX_CONFIG_BYTES: Final = 64 * 1024

_KNOWN_BACKENDS: Final = (
    "alloc", "aws-vpc", "ali-vpc", "extension", "gce", "host-gw", "ipip", "ipsec", "tencent-vpc",
    "udp", "vxlan", "wireguard",
)  # fmt: skip
SUPPORTED_BACKENDS: Final = ("vxlan", "host-gw")


class ConfigError(UsageError):
    """The configuration in etcd is wrong; the text is flannel's."""


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """The ``Backend`` object; a field the type does not use is ignored."""

    type: str = "udp"
    vni: int = DEFAULT_VNI
    port: int = 0
    direct_routing: bool = False
    learning: bool = False
    mtu: int = 0

    @property
    def device(self) -> str:
        """Name of the vxlan device."""
        return f"flannel.{self.vni}"

    @property
    def vxlan_port(self) -> int:
        """The UDP port of the vxlan device: 0 in the configuration means Linux's default."""
        return self.port or VXLAN_PORT


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A checked configuration: all defaults are filled in.

    ``subnet_min`` and ``subnet_max`` are the network addresses of the first and last subnet a node
    may get, both inclusive.
    """

    network: Prefix
    subnet_len: int
    subnet_min: int
    subnet_max: int
    backend: BackendConfig

    @property
    def subnet_size(self) -> int:
        """Addresses in one node's subnet."""
        return 1 << (32 - self.subnet_len)

    def is_compatible(self, subnet: Prefix) -> bool:
        """True if a node may hold ``subnet`` under this configuration."""
        return (
            self.subnet_min <= subnet.network <= self.subnet_max
            and subnet.length == self.subnet_len
        )


def parse_network_config(data: bytes, profile: Profile = "modern") -> NetworkConfig:
    """Read and check the document at ``<prefix>/config``; raises ConfigError."""
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the network config has {len(data)} bytes (at most {MAX_CONFIG_BYTES})")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"the network config is not JSON: {error}") from None
    except RecursionError:
        raise ConfigError("the network config is nested too deeply") from None
    if not isinstance(document, dict):
        raise ConfigError("the network config must be a JSON object")
    fields = _folded(document)
    backend = _backend(fields.get("backend"))
    if fields.get("enableipv6"):
        raise ConfigError("EnableIPv6 is set, but this flannel speaks IPv4 only; unset it")
    if fields.get("enableipv4") is False:
        raise ConfigError("EnableIPv4 is false: nothing is left to do; set it or remove it")
    network = _network(fields.get("network"))
    subnet_len = _uint(fields, "subnetlen", "SubnetLen")
    rules = _modern_length if profile == "modern" else _length_of_2017
    subnet_len = rules(network, subnet_len)
    size = 1 << (32 - subnet_len)
    lowest = _ip(fields, "subnetmin", "SubnetMin")
    highest = _ip(fields, "subnetmax", "SubnetMax")
    if lowest and lowest not in network:
        raise ConfigError("SubnetMin is not in the range of the Network")
    if highest and highest not in network:
        raise ConfigError("SubnetMax is not in the range of the Network")
    # The first subnet is skipped: its first address is the network's own.
    lowest = lowest or network.network + size
    highest = highest or network.network + network.size - size
    if profile == "modern":
        for name, value in (("SubnetMin", lowest), ("SubnetMax", highest)):
            if value != value & mask_of(subnet_len):
                raise ConfigError(f"{name} is not on a SubnetLen boundary: {format_ip(value)}")
    return NetworkConfig(network, subnet_len, lowest, highest, backend)


def _modern_length(network: Prefix, subnet_len: int) -> int:
    if subnet_len:
        # A tunnel and a bridge on each host need addresses.
        if subnet_len > 30:
            raise ConfigError("SubnetLen must be less than /31")
        if subnet_len < network.length + 2:
            raise ConfigError("network must be able to accommodate at least four subnets")
        return subnet_len
    if network.length > 28:
        raise ConfigError("network is too small. Minimum useful network prefix is /28")
    return 24 if network.length <= 22 else network.length + 2


def _length_of_2017(network: Prefix, subnet_len: int) -> int:
    if not subnet_len:
        subnet_len = 24 if network.length < 24 else network.length + 1
    elif subnet_len < network.length:
        raise ConfigError("HostSubnet is larger network than Network")
    if subnet_len > 32:
        raise ConfigError(f"network is too small: no subnet fits into {network}")
    return subnet_len


def _network(value: Any) -> Prefix:
    if value is None or value == "":
        raise ConfigError("please define a correct Network parameter in the flannel config")
    if not isinstance(value, str) or "/" not in value:
        raise ConfigError(f"invalid CIDR address: {value}")
    try:
        network = Prefix.parse(value, strict=False)
    except UsageError:
        raise ConfigError(f"invalid CIDR address: {value}") from None
    if network.network == 0:
        raise ConfigError("please define a correct Network parameter in the flannel config")
    return network


def _backend(value: Any) -> BackendConfig:
    if value is None:
        return BackendConfig()
    if not isinstance(value, dict):
        raise ConfigError("error decoding Backend property of config: it must be a JSON object")
    fields = _folded(value)
    kind = fields.get("type", "")
    if not isinstance(kind, str):
        raise ConfigError("error decoding Backend property of config: Type must be a string")
    kind = kind.lower()
    if kind not in _KNOWN_BACKENDS:
        raise ConfigError(f"unknown backend type: {kind}")
    vni = _uint(fields, "vni", "Backend.VNI") if "vni" in fields else DEFAULT_VNI
    port = _uint(fields, "port", "Backend.Port")
    if vni >= 1 << 24:
        raise ConfigError(f"error decoding VXLAN backend config: VNI {vni} has more than 24 bits")
    if port > 65535:
        raise ConfigError(f"error decoding VXLAN backend config: no port {port}")
    return BackendConfig(
        type=kind,
        vni=vni,
        port=port,
        direct_routing=_flag(fields, "directrouting", "Backend.DirectRouting"),
        learning=_flag(fields, "learning", "Backend.Learning"),
        mtu=_uint(fields, "mtu", "Backend.MTU"),
    )


def _folded(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key.lower(): value for key, value in document.items()}


def _uint(fields: Mapping[str, Any], key: str, name: str) -> int:
    value = fields.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{name} must be a non-negative number, not {value!r}")
    return value


def _flag(fields: Mapping[str, Any], key: str, name: str) -> bool:
    value = fields.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}")
    return value


def _ip(fields: Mapping[str, Any], key: str, name: str) -> int:
    value = fields.get(key)
    if value is None:
        return 0
    try:
        return parse_ip(value if isinstance(value, str) else repr(value))
    except UsageError as error:
        raise ConfigError(f"{name}: {error}") from None
