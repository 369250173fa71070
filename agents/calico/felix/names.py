"""Names felix gives to chains, sets and rules; pure.

Source: projectcalico/calico felix/hashutils, felix/rules/rule_defs.go, felix/ipsets.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

MAX_CHAIN_NAME: Final = 28
MAX_SET_NAME: Final = 31

FORWARD, INPUT, OUTPUT = "cali-FORWARD", "cali-INPUT", "cali-OUTPUT"
PREROUTING, POSTROUTING = "cali-PREROUTING", "cali-POSTROUTING"
FROM_WORKLOAD, TO_WORKLOAD = "cali-from-wl-dispatch", "cali-to-wl-dispatch"
WORKLOAD_TO_HOST = "cali-wl-to-host"
FROM_HEP_FORWARD, TO_HEP_FORWARD = "cali-from-hep-forward", "cali-to-hep-forward"
FROM_HOST, TO_HOST = "cali-from-host-endpoint", "cali-to-host-endpoint"
CIDR_BLOCK = "cali-cidr-block"
NAT_OUTGOING, FIP_DNAT, FIP_SNAT = "cali-nat-outgoing", "cali-fip-dnat", "cali-fip-snat"
TO_ENDPOINT, FROM_ENDPOINT = "cali-tw-", "cali-fw-"
POLICY_IN, POLICY_OUT = "cali-pi-", "cali-po-"
PROFILE_IN, PROFILE_OUT = "cali-pri-", "cali-pro-"
OWN_PREFIX: Final = "cali-"
SET_PREFIX: Final = "cali40"
COMMENT_PREFIX: Final = "cali:"


def limited(prefix: str, suffix: str, length: int = MAX_CHAIN_NAME) -> str:
    """``prefix + suffix`` if it fits, else the suffix hashed; a leading "_" marks the hash."""
    plain = prefix + suffix
    # A name as long as a hashed one, and looking like one, could clash with it.
    looks_hashed = len(plain) == length and suffix.startswith("_")
    if len(plain) <= length and not looks_hashed:
        return plain
    digest = base64.urlsafe_b64encode(hashlib.sha256(suffix.encode()).digest()).decode()
    return f"{prefix}_{digest[: length - 1 - len(prefix)]}"


def set_name(identity: str) -> str:
    """The IPv4 set of an identity such as ``all-hosts-net`` or ``s:…``."""
    return (SET_PREFIX + identity)[:MAX_SET_NAME]


def rule_hashes(chain: str, rendered: list[str]) -> list[str]:
    """The hash in each rule's comment: it covers the chain's name and every rule before.

    ``rendered`` holds each rule as ``-A CHAIN HASH …``.
    """
    value = hashlib.sha224(chain.encode()).digest()
    hashes = []
    for text in rendered:
        value = hashlib.sha224(value + text.encode()).digest()
        hashes.append(base64.urlsafe_b64encode(value).decode()[:16])
    return hashes
