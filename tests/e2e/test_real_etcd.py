"""A cluster on a real etcd: the same agents, the same keys, and an etcd that may fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Podwire, wait_for
from tests.etcd_servers import NO_REAL_ETCD, free_port, real_etcd_binary

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

WELCOME = "<title>Welcome to nginx!</title>"


class RealEtcd:
    """One etcd process on a directory; it can be killed and started again."""

    def __init__(self, binary: str, directory: Path) -> None:
        self._binary = binary
        self._directory = directory
        self._client = f"http://127.0.0.1:{free_port()}"
        self._peer = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return self._client

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._directory / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    *("--name", "default", "--data-dir", str(self._directory / "data")),
                    *(
                        "--listen-client-urls",
                        self._client,
                        "--advertise-client-urls",
                        self._client,
                    ),
                    *("--listen-peer-urls", self._peer),
                    *("--initial-advertise-peer-urls", self._peer),
                    *("--initial-cluster", f"default={self._peer}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for("etcd answers", lambda: self.ctl("endpoint", "health", check=False)[0] == 0)

    def kill(self) -> None:
        """As kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def ctl(self, *argv: str, check: bool = True) -> tuple[int, str]:
        """Exit code and output of etcdctl."""
        done = subprocess.run(
            ["etcdctl", f"--endpoints={self._client}", *argv],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"etcdctl {' '.join(argv)}: {done.stderr}")
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    binary = real_etcd_binary()
    if binary is None:
        pytest.skip(NO_REAL_ETCD)
    if shutil.which("etcdctl") is None:
        pytest.skip("etcdctl is not installed")
    server = RealEtcd(binary, tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cluster(home: Path, etcd: RealEtcd) -> Iterator[Podwire]:
    """Two nodes on the real etcd."""
    if shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("kubectl is not installed")
    podwire = Podwire(home, f"r{os.getpid()}")
    up(podwire, etcd)
    yield podwire
    podwire.podwire("down")


def up(podwire: Podwire, etcd: RealEtcd) -> None:
    podwire.podwire("up", "--nodes", "2", "--detach", "--etcd-endpoints", etcd.endpoint)
    podwire.env["KUBECONFIG"] = podwire.podwire("kubeconfig").out.strip()


def answers(podwire: Podwire) -> bool:
    port = podwire.get("service", "web")["spec"]["ports"][0]["nodePort"]
    urls = [f"http://{node['underlay']}:{port}" for node in podwire.status()["nodes"]]
    pages = [podwire.run(["curl", "-s", "-m", "3", url], check=False).out for url in urls]
    return all(WELCOME in page for page in pages)


def test_a_cluster_lives_on_a_real_etcd(cluster: Podwire, etcd: RealEtcd) -> None:
    assert cluster.status()["etcd"]["endpoints"] == [etcd.endpoint]
    assert "external" in cluster.podwire("status").out.splitlines()[1].split()
    cluster.kubectl("create", "deployment", "web", "--image=nginx", "--replicas=2")
    cluster.kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    wait_for("both node ports answer", lambda: answers(cluster))


def test_etcdctl_sees_what_flannel_and_the_api_server_wrote(
    cluster: Podwire, etcd: RealEtcd
) -> None:
    lines = etcd.ctl("get", "--prefix", "/coreos.com/network/subnets/")[1].splitlines()
    leases = dict(zip(lines[::2], map(json.loads, lines[1::2]), strict=True))
    assert {lease["PublicIP"] for lease in leases.values()} == {"172.17.4.201", "172.17.4.202"}
    keys = etcd.ctl("get", "--prefix", "--keys-only", "/registry/")[1]
    assert "/registry/deployments/default/web\n" in keys
    assert "/registry/leases/kube-node-lease/node-0\n" in keys
    ttls = [
        etcd.ctl("lease", "timetolive", lease)[1]
        for lease in etcd.ctl("lease", "list")[1].splitlines()[1:]
    ]
    # Two subnets for 24 h.
    assert sum("granted with TTL(86400s)" in text for text in ttls) == 2


def test_the_cluster_goes_on_when_etcd_was_killed(cluster: Podwire, etcd: RealEtcd) -> None:
    port = cluster.get("service", "web")["spec"]["ports"][0]["nodePort"]
    url = f"http://{cluster.status()['nodes'][0]['underlay']}:{port}"
    etcd.kill()
    # Packets need no etcd.
    assert WELCOME in cluster.run(["curl", "-s", "-m", "3", url]).out
    etcd.start()
    wait_for(
        "the API server writes again",
        lambda: cluster.kubectl("scale", "deployment/web", "--replicas=4", check=False).code == 0,
    )
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    wait_for("both node ports answer", lambda: answers(cluster))
    # Nobody had to be started again.
    roles = [cluster.status()["controlplane"], *cluster.status()["nodes"]]
    assert [role["restarts"] for role in roles] == [0, 0, 0]


def test_a_cluster_started_again_finds_its_objects_and_subnets(
    cluster: Podwire, etcd: RealEtcd
) -> None:
    before = etcd.ctl("get", "--prefix", "--keys-only", "/coreos.com/network/subnets/")[1]
    cluster.podwire("down")
    up(cluster, etcd)
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    wait_for("both node ports answer", lambda: answers(cluster))
    after = etcd.ctl("get", "--prefix", "--keys-only", "/coreos.com/network/subnets/")[1]
    assert after == before


def test_an_etcd_that_does_not_answer_is_named_in_one_line(home: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    podwire = Podwire(home, f"u{os.getpid()}")
    done = podwire.podwire("up", "--detach", "--etcd-endpoints", endpoint, check=False)
    assert done.code == 2
    assert done.err.startswith(f"podwire: etcd at {endpoint} cannot be used: ")
    assert done.err.count("\n") == 1
    assert not (home / podwire.name).exists()
