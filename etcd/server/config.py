"""What an etcd server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from etcd.core.identity import DEFAULT_PEER_URL, DEFAULT_TOKEN

# The version clients see: the API server wants >= 3.5.13 for watch progress requests.
SERVER_VERSION = "3.5.21"
CLUSTER_VERSION = "3.5.0"
# What gRPC messages may have beyond --max-request-bytes (etcd: grpcOverheadBytes).
MESSAGE_OVERHEAD_BYTES = 512 * 1024


class ListenAddress(NamedTuple):
    """Where to listen: an IP address and a port (0: any free one), or a unix socket's path."""

    host: str
    port: int
    tls: bool = False
    path: str = ""


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """One member that is its whole cluster."""

    name: str = "default"
    # Files live here; unused with durability "memory".
    data_dir: str = "default.etcd"
    listen_host: str = "127.0.0.1"
    # 0: any free port; ``EtcdServer.port`` tells which.
    listen_port: int = 2379
    # Every client address, the one above included; empty: that one alone, TLS if cert_file says so.
    listen_at: tuple[ListenAddress, ...] = ()
    # etcd --listen-metrics-urls: only /metrics and /health are answered there.
    metrics_at: tuple[ListenAddress, ...] = ()
    # Empty: the listening addresses.
    advertise_client_urls: tuple[str, ...] = ()
    # fsync: acknowledged means on disk.  none: written, not synced (a power cut may lose the
    # newest writes).  memory: nothing is kept.
    durability: Literal["fsync", "none", "memory"] = "fsync"
    # etcd --quota-backend-bytes: size of all keys and values with history; 0: no limit.
    quota_bytes: int = 2 * 1024**3
    # etcd --max-request-bytes; gRPC messages may have 512 KiB more.
    max_request_bytes: int = 1536 * 1024
    # etcd --max-txn-ops.
    max_txn_ops: int = 128
    # etcd --max-concurrent-streams, where the default is no limit; an API server holds some hundred
    # watches on one connection.
    max_streams: int = 10_000
    # etcd --snapshot-count: log records after which a snapshot is taken; 0: by size alone.
    snapshot_count: int = 0
    # Log bytes after which a snapshot replaces the log (at least the snapshot's own size).
    snapshot_bytes: int = 64 * 1024**2
    # etcd --experimental-watch-progress-notify-interval; Kubernetes wants 5 s.
    progress_interval_s: float = 5.0
    # etcd --auto-compaction-mode and -retention: seconds (periodic) or revisions; 0: never.
    compaction_mode: str = "periodic"
    compaction_retention: float = 0
    # etcd --grpc-keepalive-interval and -timeout; 0: never.
    keepalive_interval_s: float = 7200.0
    keepalive_timeout_s: float = 20.0
    # etcd --enable-v2: the keys API of etcd 2, with a store of its own.
    enable_v2: bool = False
    # What the member list shows: etcd's default.  There are no peers, so nothing listens there.
    peer_urls: tuple[str, ...] = (DEFAULT_PEER_URL,)
    # etcd --initial-cluster-token; with the peer URLs it makes the ids of a fresh directory.
    cluster_token: str = DEFAULT_TOKEN
    # etcd --auth-token, --auth-token-ttl, --bcrypt-cost.
    auth_token: str = "simple"
    auth_token_ttl_s: float = 300.0
    bcrypt_cost: int = 10
    # PEM files; both or none.  client_ca_file demands client certificates.
    cert_file: str | None = None
    key_file: str | None = None
    client_ca_file: str | None = None
    # --client-cert-auth: a client without a token is the user its certificate's common name tells.
    client_cert_auth: bool = False
    # etcd --auto-tls: without cert_file, a certificate of our own is made in the data directory.
    auto_tls: bool = False

    @property
    def max_message_bytes(self) -> int:
        """The largest gRPC message taken."""
        return self.max_request_bytes + MESSAGE_OVERHEAD_BYTES
