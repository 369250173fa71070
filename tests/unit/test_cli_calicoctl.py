"""podwire calicoctl: which node it runs on, who may talk to etcd, files that cannot be used."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from emulator.cli import calicoctl
from emulator.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

NODES = [{"name": "kube-0", "bird_ctl": "/a"}, {"name": "kube-1", "bird_ctl": "/b"}]


def chosen(status: dict[str, Any], node: str = "") -> Any:
    return calicoctl._node(status, argparse.Namespace(name="podwire", node=node))


def test_it_runs_on_the_first_node_or_the_one_that_is_named() -> None:
    assert chosen({"nodes": NODES})["name"] == "kube-0"
    assert chosen({"nodes": NODES}, "kube-1")["name"] == "kube-1"
    with pytest.raises(UsageError, match=r"no node 'x' \(there are: kube-0, kube-1\)"):
        chosen({"nodes": NODES}, "x")


def test_a_cluster_without_calico_says_so() -> None:
    status = {"network": "flannel", "nodes": [{"name": "node-0"}]}
    with pytest.raises(UsageError, match="'podwire' has no Calico, its network is flannel"):
        chosen(status)


def test_an_etcd_with_users_wants_a_password() -> None:
    with pytest.raises(UsageError, match="--password: the cluster's etcd has a user 'root'"):
        calicoctl._access({"user": "root"}, "")
    assert calicoctl._access({"user": "root"}, "secret").password == "secret"
    assert calicoctl._access({}, "") == calicoctl._access({"user": ""}, "")


def test_files_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nosuch: No such file"):
        calicoctl._read(str(tmp_path / "nosuch"))
    (tmp_path / "picture").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="picture: not text"):
        calicoctl._read(str(tmp_path / "picture"))
    with pytest.raises(UsageError, match="No such file"):
        calicoctl._write(str(tmp_path / "no" / "file"), "")


async def test_a_bird_that_does_not_answer_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calicoctl, "BIRD_TIMEOUT_S", 0.05)
    path = str(tmp_path / "bird.ctl")
    with pytest.raises(OSError, match="No such file"):
        await calicoctl.ask(path, "show protocols")
    done = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_unix_server(silent, path)
    with pytest.raises(TimeoutError):
        await calicoctl.ask(path, "show protocols")
    done.set()
    server.close()
