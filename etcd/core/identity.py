"""The ids of a new cluster and its members, as etcd derives them.

Source: etcd server/etcdserver/api/membership/{member,cluster}.go (computeMemberId, genID).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# etcd --initial-cluster-token and --initial-advertise-peer-urls.
DEFAULT_TOKEN: Final = "etcd-cluster"
DEFAULT_PEER_URL: Final = "http://localhost:2380"


def _first_64_bits(data: bytes) -> int:
    # Only a fresh data directory needs it, and OpenSSL is slow to load.
    import hashlib

    return int.from_bytes(hashlib.sha1(data, usedforsecurity=False).digest()[:8], "big")


def derive_ids(
    peer_urls: Iterable[str] = (DEFAULT_PEER_URL,), token: str = DEFAULT_TOKEN
) -> tuple[int, int]:
    """Return (cluster id, member id) of a cluster whose one member has these peer URLs."""
    member_id = _first_64_bits(("".join(sorted(peer_urls)) + token).encode())
    return _first_64_bits(member_id.to_bytes(8, "big")), member_id
