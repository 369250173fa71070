"""Keys and small records of IPAM in the datastore (pure).

Source: projectcalico/calico libcalico-go/lib/backend/model/{block,block_affinity,ipam_*}.go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agents.calico.net import Cidr
from emulator.errors import UsageError

if TYPE_CHECKING:
    from agents.calico.datastore import KVPair

ROOT: Final = "/calico/ipam/v2/"
CONFIG_KEY: Final = f"{ROOT}config"
BLOCK_PREFIX: Final = f"{ROOT}assignment/"
HOST_PREFIX: Final = f"{ROOT}host/"
HANDLE_PREFIX: Final = f"{ROOT}handle/"

CONFIRMED: Final = "confirmed"
PENDING: Final = "pending"
PENDING_DELETION: Final = "pendingDeletion"

_BLOCK: Final = re.compile(r"/calico/ipam/v2/assignment/ipv[46]/block/([^/]+)")
_AFFINITY: Final = re.compile(r"/calico/ipam/v2/host/([^/]+)/ipv[46]/block/([^/]+)")


def _cidr_text(cidr: Cidr) -> str:
    return str(cidr).replace("/", "-")


def block_key(cidr: Cidr) -> str:
    """The key of a block."""
    return f"{BLOCK_PREFIX}ipv{cidr.version}/block/{_cidr_text(cidr)}"


def block_prefix(version: int) -> str:
    """All blocks of one family."""
    return f"{BLOCK_PREFIX}ipv{version}/block/"


def affinity_key(host: str, cidr: Cidr) -> str:
    """The key of a host's claim to a block."""
    return f"{affinity_prefix(host, cidr.version)}{_cidr_text(cidr)}"


def affinity_prefix(host: str, version: int) -> str:
    """All claims of a host in one family."""
    return f"{HOST_PREFIX}{host}/ipv{version}/block/"


def host_key(host: str) -> str:
    """The marker of a host that has IPAM data."""
    return f"{HOST_PREFIX}{host}"


def handle_key(handle: str) -> str:
    """The key of a handle."""
    return f"{HANDLE_PREFIX}{handle}"


def block_of_key(key: str) -> Cidr | None:
    """The block a key names, None for other keys."""
    match = _BLOCK.fullmatch(key)
    return _cidr(match.group(1)) if match else None


def affinity_of_key(key: str) -> tuple[str, Cidr] | None:
    """The host and block of a claim's key, None for other keys."""
    match = _AFFINITY.fullmatch(key)
    cidr = _cidr(match.group(2)) if match else None
    return (match.group(1), cidr) if match and cidr else None


def _cidr(text: str) -> Cidr | None:
    address, _, length = text.rpartition("-")
    try:
        return Cidr.parse(f"{address}/{length}")
    except UsageError:
        return None


class Affinity(NamedTuple):
    """A host's claim to a block, as it was read."""

    host: str
    cidr: Cidr
    state: str
    kvp: KVPair

    @classmethod
    def read(cls, kvp: KVPair) -> Affinity | None:
        """From a stored pair; no state (data of before 3.1) counts as confirmed."""
        named = affinity_of_key(kvp.key)
        if named is None:
            return None
        value = kvp.value if isinstance(kvp.value, dict) else {}
        return cls(*named, value.get("state") or CONFIRMED, kvp)


def affinity_value(state: str) -> dict[str, Any]:
    """The stored form of a claim."""
    return {"state": state, "deleted": False}


@dataclass(frozen=True, slots=True)
class IpamConfig:
    """Cluster-wide settings; ``max_blocks_per_host`` 0: the built-in limit."""

    strict_affinity: bool = False
    auto_allocate_blocks: bool = True
    max_blocks_per_host: int = 0

    @classmethod
    def from_value(cls, value: Any) -> IpamConfig:
        """Read the stored form, in which false and 0 are left out."""
        if not isinstance(value, dict):
            return cls()
        return cls(
            bool(value.get("strict_affinity")),
            bool(value.get("auto_allocate_blocks")),
            int(value.get("maxBlocksPerHost") or 0),
        )

    def to_value(self) -> dict[str, Any]:
        """The stored form."""
        value: dict[str, Any] = {}
        if self.strict_affinity:
            value["strict_affinity"] = True
        if self.auto_allocate_blocks:
            value["auto_allocate_blocks"] = True
        if self.max_blocks_per_host:
            value["maxBlocksPerHost"] = self.max_blocks_per_host
        return value


class Handle(NamedTuple):
    """How many addresses a holder has in which block, as it was read."""

    handle_id: str
    blocks: dict[str, int]
    kvp: KVPair

    @classmethod
    def read(cls, kvp: KVPair) -> Handle:
        """From a stored pair."""
        value = kvp.value if isinstance(kvp.value, dict) else {}
        return cls(kvp.key.removeprefix(HANDLE_PREFIX), dict(value.get("block") or {}), kvp)

    def changed(self, cidr: Cidr, amount: int) -> dict[str, int]:
        """The blocks after ``amount`` more (or fewer) addresses in one; none below zero."""
        blocks = dict(self.blocks)
        count = blocks.get(str(cidr), 0) + amount
        if count > 0:
            blocks[str(cidr)] = count
        else:
            blocks.pop(str(cidr), None)
        return blocks


def handle_value(blocks: dict[str, int]) -> dict[str, Any]:
    """The stored form of a handle."""
    return {"block": dict(sorted(blocks.items())), "deleted": False}
