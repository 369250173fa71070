"""The pod network of a cluster file: which kinds there are and what each can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from emulator.addr import Prefix
from emulator.cluster.fields import Fields
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MILLISECONDS: Final = re.compile(r"([0-9]{1,5})ms")
# Python's timers and a busy host make shorter intervals report the living dead.
MIN_BFD_MS: Final = 10
MAX_BFD_MS: Final = 60_000
NETWORKS: Final = ("flannel", "calico")
FLANNEL_BACKENDS: Final = ("vxlan", "host-gw")
# IPPool.spec.ipipMode and vxlanMode.
CALICO_MODES: Final = ("Always", "CrossSubnet", "Never")
# RFC 6996: the private AS every Calico cluster starts with.
DEFAULT_AS_NUMBER: Final = 64512
MAX_AS_NUMBER: Final = (1 << 32) - 1
# BGP's port moved above 1024, where no privilege is needed; 179 can be asked for.
BGP_PORT: Final = 1790
_DEFAULT_POD_CIDR: Final = {"flannel": "10.2.0.0/16", "calico": "192.168.0.0/16"}


@dataclass(frozen=True, slots=True)
class FlannelSpec:
    """flannel: ``subnet_len`` is the length of one node's subnet."""

    subnet_len: int
    backend: str


@dataclass(frozen=True, slots=True)
class CalicoSpec:
    """Calico: what its first IP pool and its BGP configuration say, in their own words."""

    block_size: int
    ipip_mode: str
    vxlan_mode: str
    nat_outgoing: bool
    as_number: int
    mesh: bool
    bgp_port: int
    # Seconds between BFD's packets, how many may be missing, whether a dead peer's routes are kept
    # for its restart; None for no BFD.
    bfd: tuple[float, int, bool] | None = None
    # Host and port of a BMP collector that all nodes report to.
    bmp: tuple[str, int] | None = None
    mrt_messages: bool = False
    # Whose words bird.ctl speaks: BIRD 1.6's, which Calico's own tools insist on, or BIRD 2's.
    bird_dialect: int = 1


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The pod network; the part of its kind is set, the others are None."""

    type: str
    pod_cidr: Prefix
    flannel: FlannelSpec | None = None
    calico: CalicoSpec | None = None


def read_network(
    value: object, type_override: str | None, cidr_override: str | None
) -> NetworkSpec:
    """Read ``network``, a kind's name or a mapping; the overrides are the command line's."""
    if isinstance(value, str):
        value = {"type": value}
    fields = Fields(value, "network")
    in_file = fields.text("type", "flannel")
    kind = type_override or in_file
    if kind not in NETWORKS:
        raise UsageError(
            f"network: {kind!r} is not a network Podwire knows ({', '.join(NETWORKS)})"
        )
    pod_cidr = fields.prefix("podCIDR", _DEFAULT_POD_CIDR[kind])
    if cidr_override is not None:
        try:
            pod_cidr = Prefix.parse(cidr_override)
        except UsageError as error:
            raise UsageError(f"--pod-cidr: {error}") from None
    if kind == "calico":
        network = NetworkSpec(kind, pod_cidr, calico=_calico(fields, pod_cidr))
    else:
        network = NetworkSpec(kind, pod_cidr, flannel=_flannel(fields, pod_cidr))
    fields.done()
    return network


def _flannel(fields: Fields, pod_cidr: Prefix) -> FlannelSpec:
    # flannel's own default: /24, or two bits below a network of /23 and longer.
    subnet_len = fields.number("subnetLen", 24 if pod_cidr.length <= 22 else pod_cidr.length + 2)
    backend = fields.text("backend", "vxlan")
    if backend not in FLANNEL_BACKENDS:
        raise UsageError(
            f"network.backend: {backend!r} is not a flannel backend Podwire knows "
            f"({', '.join(FLANNEL_BACKENDS)})"
        )
    if pod_cidr.length > 28:
        raise UsageError(
            f"network.podCIDR: {pod_cidr} is too small; the minimum useful network prefix is /28"
        )
    if subnet_len > 30:
        raise UsageError(f"network.subnetLen: {subnet_len} must be less than 31")
    if subnet_len < pod_cidr.length + 2:
        raise UsageError(
            f"network.subnetLen: {pod_cidr} must be able to accommodate at least four subnets of "
            f"/{subnet_len}"
        )
    return FlannelSpec(subnet_len, backend)


def _calico(fields: Fields, pod_cidr: Prefix) -> CalicoSpec:
    # A pool's limits: libcalico-go, lib/clientv3/ippool.go.
    block_size = fields.number("blockSize", 26, 20, 32)
    if pod_cidr.length > block_size:
        raise UsageError(
            f"network.podCIDR: {pod_cidr} is too small; a pool holds at least one block of "
            f"/{block_size}"
        )
    vxlan_mode = fields.choice("vxlanMode", "Never", CALICO_MODES)
    ipip_default = "Always" if vxlan_mode == "Never" else "Never"
    ipip_mode = fields.choice("ipipMode", ipip_default, CALICO_MODES)
    if "Never" not in (ipip_mode, vxlan_mode):
        raise UsageError("network.vxlanMode: a pool has IPIP or VXLAN, not both")
    return CalicoSpec(
        block_size,
        ipip_mode,
        vxlan_mode,
        fields.truth("natOutgoing", True),
        fields.number("asNumber", DEFAULT_AS_NUMBER, 1, MAX_AS_NUMBER),
        fields.truth("nodeToNodeMesh", True),
        fields.number("bgpPort", BGP_PORT, 1, 65535),
        _bfd(fields),
        _collector(fields),
        fields.truth("mrtMessages", False),
        fields.number("birdDialect", 1, 1, 2),
    )


def _bfd(fields: Fields) -> tuple[float, int, bool] | None:
    if "bfd" not in fields:
        fields.get("bfd", None)
        return None
    inner = Fields(fields.get("bfd", None), "network.bfd")
    text = inner.text("interval", "100ms")
    match = _MILLISECONDS.fullmatch(text)
    if match is None or not MIN_BFD_MS <= int(match.group(1)) <= MAX_BFD_MS:
        raise UsageError(
            f"network.bfd.interval: {text!r} is not from {MIN_BFD_MS}ms to {MAX_BFD_MS}ms"
        )
    multiplier = inner.number("multiplier", 3, 1, 255)
    graceful = inner.truth("graceful", False)
    inner.done()
    return int(match.group(1)) / 1000, multiplier, graceful


def _collector(fields: Fields) -> tuple[str, int] | None:
    text = fields.text("bmp", "")
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"network.bmp: {text!r} is not HOST:PORT of a BMP collector")
    return host, int(port)


def check_room(network: NetworkSpec, nodes: int) -> None:
    """Raise UsageError if the network cannot give every node a subnet or a block."""
    if network.flannel is not None:
        # flannel leaves the first subnet of the network unused.
        length, unused, field = network.flannel.subnet_len, 1, "subnetLen"
        what = "subnets"
    else:
        assert network.calico is not None
        length, unused, field = network.calico.block_size, 0, "blockSize"
        what = "blocks"
    pool = (1 << (length - network.pod_cidr.length)) - unused
    if nodes > pool:
        raise UsageError(
            f"network.podCIDR: {network.pod_cidr} has {pool} {what} of /{length}, too few for "
            f"{nodes} nodes; use a shorter podCIDR or a longer {field}"
        )


def flannel_config(network: NetworkSpec) -> Mapping[str, object] | None:
    """flannel's own network configuration (the value of ``<prefix>/config``); None for others."""
    if network.flannel is None:
        return None
    return {
        "Network": str(network.pod_cidr),
        "SubnetLen": network.flannel.subnet_len,
        "Backend": {"Type": network.flannel.backend},
    }
