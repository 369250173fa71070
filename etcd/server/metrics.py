"""/metrics: etcd's names with this server's numbers.

Sources: etcd server/{etcdserver,mvcc,lease,wal}/metrics.go, go-grpc-prometheus.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from etcd.core.errors import Code
from etcd.server.config import CLUSTER_VERSION, SERVER_VERSION
from etcd.server.services import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etcd.core.counts import Histogram
    from etcd.server.member import Member
    from etcd.server.services import Services


class Metrics:
    """Renders one member's metrics."""

    def __init__(self, member: Member, services: Services) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_EtcdCollector(member, services))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return the metrics of this moment."""
        return generate_latest(self._registry)


class _EtcdCollector(Collector):
    def __init__(self, member: Member, services: Services) -> None:
        self._member = member
        self._services = services

    def collect(self) -> Iterator[Metric]:
        yield from self._server()
        yield from self._store()
        yield from self._watches()
        yield from self._leases()
        yield from self._disk()
        yield from self._grpc()

    def _server(self) -> Iterator[Metric]:
        member, engine = self._member, self._member.engine
        for name, help_text, value in (
            ("etcd_server_has_leader", "Whether a leader exists: this member, always.", 1),
            ("etcd_server_is_leader", "Whether this member is the leader: always.", 1),
            ("etcd_server_is_learner", "Whether this member is a learner: never.", 0),
            (
                "etcd_server_proposals_committed_total",
                "The index of the last entry of the log.",
                engine.raft_index,
            ),
            (
                "etcd_server_proposals_applied_total",
                "The index of the last entry applied.",
                engine.raft_index,
            ),
            (
                "etcd_server_proposals_pending",
                "Entries applied but not yet durable.",
                engine.pending_records,
            ),
            (
                "etcd_server_quota_backend_bytes",
                "The size of the store above which writes are refused.",
                member.config.quota_bytes,
            ),
        ):
            yield GaugeMetricFamily(name, help_text, value=value)
        yield CounterMetricFamily(
            "etcd_server_leader_changes_seen",
            "Leader changes seen by this process: its own election.",
            value=1,
        )
        yield CounterMetricFamily(
            "etcd_server_proposals_failed",
            "Calls whose changes could not be made durable.",
            value=engine.counts.proposals_failed,
        )
        for name, label, shown in (
            ("etcd_server_version", "server_version", SERVER_VERSION),
            ("etcd_cluster_version", "cluster_version", CLUSTER_VERSION.rpartition(".")[0]),
            ("etcd_server_id", "server_id", f"{engine.member_id:x}"),
        ):
            family = GaugeMetricFamily(name, f"Which {label} is running: 1.", labels=[label])
            family.add_metric([shown], 1)
            yield family

    def _store(self) -> Iterator[Metric]:
        engine = self._member.engine
        counts, store = engine.counts, engine.store
        for name, help_text, count in (
            ("put", "Keys put.", counts.puts),
            ("delete", "Keys deleted.", counts.deletes),
            ("range", "Ranges read.", counts.ranges),
            ("txn", "Transactions of several operations.", counts.txns),
        ):
            yield CounterMetricFamily(f"etcd_mvcc_{name}", help_text, value=count)
            yield CounterMetricFamily(f"etcd_debugging_mvcc_{name}", help_text, value=count)
        yield CounterMetricFamily(
            "etcd_debugging_mvcc_db_compaction_keys",
            "Versions of keys removed by compactions.",
            value=store.compacted_rows,
        )
        for name, help_text, value in (
            ("etcd_mvcc_db_total_size_in_bytes", "Keys and values with history.", store.size),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", "The same.", store.size),
            ("etcd_debugging_mvcc_db_total_size_in_bytes", "The same.", store.size),
            ("etcd_debugging_mvcc_keys_total", "Keys that exist.", len(store)),
            ("etcd_debugging_mvcc_current_revision", "The store's revision.", store.revision),
            (
                "etcd_debugging_mvcc_compact_revision",
                "The last compacted revision, -1 before the first.",
                store.compacted,
            ),
            (
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                "Bytes of keys and values put.",
                counts.put_bytes,
            ),
        ):
            yield GaugeMetricFamily(name, help_text, value=value)

    def _watches(self) -> Iterator[Metric]:
        hub = self._member.hub
        yield CounterMetricFamily(
            "etcd_debugging_mvcc_events", "Events sent to watchers.", value=hub.events_sent
        )
        for name, help_text, value in (
            ("watch_stream_total", "Watch streams.", len(hub.streams)),
            ("watcher_total", "Watchers.", sum(len(stream.watchers) for stream in hub.streams)),
            ("slow_watcher_total", "Watchers that lag behind.", hub.lagging_count),
        ):
            yield GaugeMetricFamily(f"etcd_debugging_mvcc_{name}", help_text, value=value)

    def _leases(self) -> Iterator[Metric]:
        counts = self._member.engine.counts
        for name, help_text, value in (
            ("granted", "Leases granted.", counts.leases_granted),
            ("revoked", "Leases revoked, by a call or when they expired.", counts.leases_revoked),
            ("renewed", "Leases renewed.", counts.leases_renewed),
        ):
            yield CounterMetricFamily(f"etcd_debugging_lease_{name}", help_text, value=value)
        yield CounterMetricFamily(
            "etcd_debugging_server_lease_expired", "Leases expired.", value=counts.leases_expired
        )
        yield _histogram(
            "etcd_debugging_lease_ttl_total", "TTLs of granted leases.", counts.lease_ttls
        )

    def _disk(self) -> Iterator[Metric]:
        storage = self._member.storage
        if storage is None:
            return
        yield _histogram(
            "etcd_disk_wal_fsync_duration_seconds",
            "How long syncing the log took.",
            storage.fsync_s,
        )
        yield _histogram(
            "etcd_disk_backend_commit_duration_seconds",
            "How long making a loop tick's changes durable took, syncing included.",
            storage.commit_s,
        )
        yield GaugeMetricFamily(
            "etcd_disk_wal_write_bytes_total", "Bytes written to the log.", value=storage.written
        )

    def _grpc(self) -> Iterator[Metric]:
        traffic = self._services.traffic
        for way, count in (("received", traffic.received_bytes), ("sent", traffic.sent_bytes)):
            yield CounterMetricFamily(
                f"etcd_network_client_grpc_{way}_bytes",
                f"Bytes of gRPC messages {way}.",
                value=count,
            )
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        started = CounterMetricFamily("grpc_server_started", "RPCs started.", labels=labels)
        received = CounterMetricFamily(
            "grpc_server_msg_received", "Messages received.", labels=labels
        )
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages sent.", labels=labels)
        handled = CounterMetricFamily(
            "grpc_server_handled",
            "RPCs completed, whatever the outcome.",
            labels=[*labels, "grpc_code"],
        )
        for path, counts in self._services.counts.items():
            _, service, method = path.split("/")
            kind = KINDS[path]
            values = [kind, service, method]
            unary = kind == "unary"
            failed = sum(counts.failed.values())
            started.add_metric(values, counts.started)
            received.add_metric(values, counts.ok + failed if unary else counts.received)
            sent.add_metric(values, counts.ok if unary else counts.sent)
            handled.add_metric([*values, Code.OK.camel], counts.ok)
            for code, count in counts.failed.items():
                handled.add_metric([*values, code.camel], count)
        yield from (started, handled, received, sent)


def _histogram(name: str, help_text: str, values: Histogram) -> Metric:
    bounds = [*map(floatToGoString, values.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(values.counts)), strict=True))
    return HistogramMetricFamily(name, help_text, buckets=buckets, sum_value=values.total)
