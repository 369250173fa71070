"""The etcd server: sockets, files and timers around etcd.core."""

from __future__ import annotations

from etcd.server.config import EtcdConfig
from etcd.server.daemon import EtcdServer, run_etcd

__all__ = ["EtcdConfig", "EtcdServer", "run_etcd"]
