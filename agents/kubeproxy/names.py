"""Names of kube-proxy's chains; pure (kubernetes, pkg/proxy/iptables/proxier.go)."""

from __future__ import annotations

import base64
import functools
import hashlib
from typing import Final

SERVICES: Final = "KUBE-SERVICES"
EXTERNAL_SERVICES: Final = "KUBE-EXTERNAL-SERVICES"
NODEPORTS: Final = "KUBE-NODEPORTS"
POSTROUTING: Final = "KUBE-POSTROUTING"
MARK_MASQ: Final = "KUBE-MARK-MASQ"
MARK_DROP: Final = "KUBE-MARK-DROP"
FORWARD: Final = "KUBE-FORWARD"
FIREWALL: Final = "KUBE-FIREWALL"
PROXY_FIREWALL: Final = "KUBE-PROXY-FIREWALL"

_SERVICE_PREFIXES: Final = (
    "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-XLB-",
)  # fmt: skip


@functools.lru_cache(maxsize=16384)
def name_hash(text: str) -> str:
    """base32(sha256(text)) cut to 16 characters: chain names have at most 28."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest())[:16].decode()


def service_chain(prefix: str, service_port: str, protocol: str) -> str:
    """``prefix`` is SVC, SVL, EXT, FW or XLB; ``service_port`` is ``ns/name:port``."""
    return f"KUBE-{prefix}-{name_hash(service_port + protocol)}"


def endpoint_chain(service_port: str, protocol: str, endpoint: str) -> str:
    """``endpoint`` is ``ip:port``."""
    return f"KUBE-SEP-{name_hash(service_port + protocol + endpoint)}"


def is_service_chain(name: str) -> bool:
    """True for a chain that belongs to one service or endpoint."""
    return name.startswith(_SERVICE_PREFIXES)
