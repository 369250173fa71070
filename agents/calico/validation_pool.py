"""IPPool: defaults and rules that need no other resource (pure).

Source: projectcalico/calico libcalico-go/lib/clientv3/ippool.go validateAndSetDefaults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agents.calico.errors import ErroredField, ValidationError
from agents.calico.net import Cidr, Ip
from agents.calico.resources import name_of
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agents.calico.resources import Resource
    from agents.calico.validation_fields import Fields

MODES: Final = ("Always", "CrossSubnet", "Never")
USES: Final = ("Workload", "Tunnel", "LoadBalancer")
DEFAULT_BLOCK_SIZE: Final = {4: 26, 6: 122}
BLOCK_SIZES: Final = {4: (20, 32), 6: (116, 128)}
_LINK_LOCAL: Final = {
    4: (
        Cidr.parse("169.254.0.0/16"),
        "IPPool CIDR overlaps with IPv4 Link Local range 169.254.0.0/16",
    ),
    6: (Cidr.parse("fe80::/10"), "IPPool CIDR overlaps with IPv6 Link Local range fe80::/10"),
}


def default_pool_spec(spec: dict[str, Any]) -> None:
    """Fill what a stored pool may leave out; older clients stored less."""
    if not spec.get("blockSize"):
        version = 6 if ":" in str(spec.get("cidr", "")) else 4
        spec["blockSize"] = DEFAULT_BLOCK_SIZE[version]
    if not spec.get("ipipMode"):
        spec["ipipMode"] = "Never"
    if not spec.get("vxlanMode"):
        spec["vxlanMode"] = "Never"
    if not spec.get("nodeSelector"):
        spec["nodeSelector"] = "all()"
    if not spec.get("allowedUses"):
        spec["allowedUses"] = ["Workload", "Tunnel"]
    if not spec.get("assignmentMode"):
        spec["assignmentMode"] = "Automatic"


def default_ip_pool(resource: Resource) -> None:
    """``default_pool_spec`` of a resource."""
    default_pool_spec(resource["spec"])


def check_ip_pool(resource: Resource, fields: Fields) -> None:
    """All rules but overlaps, which need the other pools (agents.calico.client)."""
    spec = resource["spec"]
    text = spec.get("cidr")
    if not text:
        fields.bad("IPPool.Spec.CIDR", "IPPool CIDR must be specified", None)
        return
    try:
        cidr = Cidr.parse(str(text))
        address = Ip.parse(str(text).partition("/")[0])
    except UsageError:
        fields.bad("IPPool.Spec.CIDR", "IPPool CIDR must be a valid subnet", text)
        return
    _check_sizes(spec, cidr, fields)
    fields.choice("IPIPMode", spec["ipipMode"], MODES, tag="omitempty,ipIpMode")
    fields.choice("VXLANMode", spec["vxlanMode"], MODES, tag="omitempty,vxlanMode")
    if spec["vxlanMode"] != "Never" and spec["ipipMode"] != "Never":
        fields.bad(
            "IPPool.Spec.VXLANMode",
            "Cannot enable both VXLAN and IPIP on the same IPPool",
            spec["vxlanMode"],
        )
    if cidr.version == 6 and spec["ipipMode"] != "Never":
        fields.bad(
            "IPPool.Spec.IPIPMode", "IPIP is not supported on an IPv6 IP pool", spec["ipipMode"]
        )
    if address.value != cidr.network:
        fields.bad("IPPool.Spec.CIDR", "IPPool CIDR is not strictly masked", text)
    link_local, reason = _LINK_LOCAL[cidr.version]
    if cidr.overlaps(link_local):
        fields.bad("IPPool.Spec.CIDR", reason, text)
    fields.selector("NodeSelector", spec["nodeSelector"])
    fields.selector("NamespaceSelector", spec.get("namespaceSelector"))
    for use in fields.strings("AllowedUses", spec["allowedUses"]):
        if use not in USES:
            fields.bad("IPPool.Spec.AllowedUses", f"unknown use: {use}", use)
    fields.choice(
        "AssignmentMode",
        spec["assignmentMode"],
        ("Automatic", "Manual"),
        tag="omitempty,assignmentMode",
    )
    for name in ("natOutgoing", "disabled", "disableBGPExport"):
        fields.boolean(name, spec.get(name))


def _check_sizes(spec: dict[str, Any], cidr: Cidr, fields: Fields) -> None:
    size = spec["blockSize"]
    least, most = BLOCK_SIZES[cidr.version]
    if isinstance(size, bool) or not isinstance(size, int) or not least <= size <= most:
        fields.bad(
            "IPPool.Spec.BlockSize",
            f"IPv{cidr.version} block size must be between {least} and {most}",
            size,
        )
    elif not spec.get("disabled") and cidr.length > size:
        fields.bad(
            "IPPool.Spec.CIDR",
            "IP pool size is too small for use with Calico IPAM. "
            "It must be equal to or greater than the block size.",
            spec["cidr"],
        )


def check_overlap(pool: Resource, others: Iterable[Resource]) -> None:
    """ValidationError for a new pool whose range another one has."""
    cidr = Cidr.parse(pool["spec"]["cidr"])
    for other in others:
        if name_of(other) == name_of(pool):
            continue
        try:
            overlap = Cidr.parse(other["spec"]["cidr"]).overlaps(cidr)
        except (UsageError, KeyError, TypeError):
            continue
        if overlap:
            raise ValidationError(
                ErroredField(
                    "IPPool.Spec.CIDR",
                    f"IPPool({name_of(pool)}) CIDR overlaps with IPPool({name_of(other)}) "
                    f"CIDR {other['spec']['cidr']}",
                    pool["spec"]["cidr"],
                )
            )


def check_changed_pool(old: Resource, new: Resource) -> None:
    """ValidationError if what a pool is for its life has changed; defaults filled in on both."""
    broken: list[ErroredField] = []
    for field, name in (("cidr", "CIDR"), ("blockSize", "BlockSize")):
        if old["spec"].get(field) != new["spec"].get(field):
            broken.append(
                ErroredField(
                    f"IPPool.Spec.{name}", f"IPPool {name} cannot be modified", new["spec"][field]
                )
            )
    if broken:
        raise ValidationError(*broken)
