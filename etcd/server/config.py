"""What an etcd server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The version clients see: the API server wants >= 3.5.13 for watch progress requests.
SERVER_VERSION = "3.5.21"
CLUSTER_VERSION = "3.5.0"


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """One member that is its whole cluster."""

    name: str = "default"
    # Files live here; unused with durability "memory".
    data_dir: str = "default.etcd"
    listen_host: str = "127.0.0.1"
    # 0: any free port; ``EtcdServer.port`` tells which.
    listen_port: int = 2379
    # Empty: the listening address.
    advertise_client_urls: tuple[str, ...] = ()
    # fsync: acknowledged means on disk.  none: written, not synced (a power cut may lose the
    # newest writes).  memory: nothing is kept.
    durability: Literal["fsync", "none", "memory"] = "fsync"
    # etcd --quota-backend-bytes: size of all keys and values with history; 0: no limit.
    quota_bytes: int = 2 * 1024**3
    # Log bytes after which a snapshot replaces the log (at least the snapshot's own size).
    snapshot_bytes: int = 64 * 1024**2
    # etcd --experimental-watch-progress-notify-interval; Kubernetes wants 5 s.
    progress_interval_s: float = 5.0
    # etcd --enable-v2: the keys API of etcd 2, with a store of its own.
    enable_v2: bool = False
    # What the member list shows: etcd's default.  There are no peers, so nothing listens there.
    peer_urls: tuple[str, ...] = ("http://localhost:2380",)
    # PEM files; both or none.  client_ca_file demands client certificates.
    cert_file: str | None = None
    key_file: str | None = None
    client_ca_file: str | None = None
    # --client-cert-auth: a client without a token is the user its certificate's common name tells.
    client_cert_auth: bool = False
    # --auth-token, --auth-token-ttl, --bcrypt-cost.
    auth_token: str = "simple"
    auth_token_ttl_s: float = 300.0
    bcrypt_cost: int = 10
