"""The agents' etcd client."""

from __future__ import annotations

from etcd.client.client import EtcdClient
from etcd.client.model import (
    Delete,
    DeleteResult,
    Event,
    Get,
    LeaseInfo,
    LeaseStatus,
    Put,
    PutResult,
    RangeResult,
    ServerStatus,
    Txn,
    TxnResult,
    WatchBatch,
    create_revision,
    lease_of,
    mod_revision,
    prefix_end,
    value,
    version,
)
from etcd.client.watch import Watch
from etcd.core.access import NO_ACCESS, EtcdAccess
from etcd.core.errors import Code, CompactedError, EtcdError
from etcd.core.mvcc import KeyValue

__all__ = [
    "NO_ACCESS",
    "Code",
    "CompactedError",
    "Delete",
    "DeleteResult",
    "EtcdAccess",
    "EtcdClient",
    "EtcdError",
    "Event",
    "Get",
    "KeyValue",
    "LeaseInfo",
    "LeaseStatus",
    "Put",
    "PutResult",
    "RangeResult",
    "ServerStatus",
    "Txn",
    "TxnResult",
    "Watch",
    "WatchBatch",
    "create_revision",
    "lease_of",
    "mod_revision",
    "prefix_end",
    "value",
    "version",
]
