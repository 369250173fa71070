"""Bad input: one clear line, exit code 2, and nothing left running or lying about."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emulator.cluster.plan import API_PORT, ETCD_PORT, KUBELET_PORT, VXLAN_PORT, preferred_block
from emulator.cluster.state import CLAIM_PORT
from tests.e2e.harness import Podwire, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

NOBODY = 65534


@pytest.fixture
def nothing(home: Path) -> Iterator[Podwire]:
    """A name with no cluster; whatever the test does, nothing may be left of it."""
    podwire = Podwire(home, f"b{os.getpid()}")
    yield podwire
    assert processes_of(podwire.name) == []
    assert [entry for entry in os.listdir(home) if podwire.name in entry] == []


def processes_of(name: str) -> list[str]:
    """Command lines of the living processes that were started for a cluster of this name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if name.encode() in words:
            found.append(b" ".join(words).decode())
    return found


def refused(podwire: Podwire, *argv: str) -> str:
    """What ``podwire`` says of a command it does not take."""
    done = podwire.podwire(*argv, check=False)
    assert (done.code, done.out) == (2, ""), done
    assert done.err.startswith("podwire: ")
    assert done.err.count("\n") == 1
    return done.err.removeprefix("podwire: ").rstrip("\n")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--network", "cilium"],
            "network: 'cilium' is not a network Podwire knows (flannel, calico)",
        ),
        (["--pod-cidr", "10.2.0.0/30"], "network.podCIDR: 10.2.0.0/30 is too small; "),
        (["--nodes", "0"], "nodes: a cluster needs at least 1 node"),
        (
            ["--pod-cidr", "10.2.0.0/24", "--nodes", "300"],
            "network.podCIDR: 10.2.0.0/24 has 3 subnets of /26, too few for 300 nodes; ",
        ),
        (["--etcd-endpoints", "nonsense"], "--etcd-endpoints: 'nonsense' is not an endpoint "),
        (["/nosuch.yaml"], "/nosuch.yaml: No such file or directory"),
        (["/"], "/: Is a directory"),
    ],
)
def test_a_cluster_that_cannot_be(nothing: Podwire, argv: list[str], line: str) -> None:
    assert refused(nothing, "up", "--detach", *argv).startswith(line)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"nods: 3", "nods: unknown field (known: "),
        (b"nodes: {a", "cluster file is not YAML at line "),
        (b"\x00\xff\xfe" * 100, "not a text file"),
        (b"name: a\x07", "cluster file is not YAML: unacceptable character"),
        (b"nodes: [etcd]", "nodes[0].name: 'etcd' is the name of another process"),
    ],
)
def test_a_cluster_file_that_cannot_be(
    nothing: Podwire, tmp_path: Path, content: bytes, line: str
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_bytes(content)
    assert refused(nothing, "up", "--detach", str(file)).startswith(f"{file}: {line}")


@pytest.mark.parametrize(
    ("kind", "last_bytes", "port", "role"),
    [
        (socket.SOCK_STREAM, "0.51", ETCD_PORT, "etcd"),
        (socket.SOCK_STREAM, "0.101", API_PORT, "controlplane"),
        (socket.SOCK_DGRAM, "1.1", VXLAN_PORT, "node-0"),
        (socket.SOCK_STREAM, "1.1", KUBELET_PORT, "node-0"),
    ],
)
def test_a_taken_port_is_named(
    nothing: Podwire, kind: socket.SocketKind, last_bytes: str, port: int, role: str
) -> None:
    host = f"127.{preferred_block(nothing.name)}.{last_bytes}"
    with socket.socket(type=kind) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        line = refused(nothing, "up", "--detach", "--nodes", "1")
    assert line.startswith(f"{role}: ")
    assert host in line
    assert str(port) in line
    assert "ddress already in use" in line


def test_a_block_that_a_cluster_of_another_home_claims_is_left_to_it(nothing: Podwire) -> None:
    block = preferred_block(nothing.name)
    with socket.socket(type=socket.SOCK_DGRAM) as claim:
        claim.bind((f"127.{block}.0.1", CLAIM_PORT))
        nothing.podwire("up", "--detach", "--nodes", "1")
        assert not nothing.status()["controlplane"]["underlay"].startswith(f"127.{block}.")
        nothing.podwire("down")


def test_an_etcd_out_of_reach_is_told_before_anything_starts(nothing: Podwire) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        line = refused(nothing, "up", "--detach", "--etcd-endpoints", url)
    assert line.startswith(f"etcd at {url} cannot be used: ")
    assert "ConnectionRefusedError" in line


def test_a_home_that_cannot_be_written(nothing: Podwire, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nothing.env["PODWIRE_HOME"] = str(tmp_path / "file" / "home")
    assert refused(nothing, "up").endswith("set PODWIRE_HOME elsewhere")
    assert nothing.podwire("down").out == f"cluster '{nothing.name}' is not running\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_home_of_somebody_else(nothing: Podwire, home: Path) -> None:
    script = (
        "import os, sys, emulator.cli.up, emulator.cli.down; from emulator.cli.main import main;"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); sys.exit(main())"
    )
    home.chmod(0o700)
    for verb in ("up", "down"):
        argv = ["python", "-c", script, verb, "--name", nothing.name]
        done = nothing.run(argv, check=False)
        assert (done.code, done.out) == (2, ""), done
        assert "Permission denied" in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("way", [["--detach"], []])
@pytest.mark.parametrize("after", ["etcd", "node-0"])
def test_a_start_that_is_given_up_takes_everything_along(
    nothing: Podwire, way: list[str], after: str
) -> None:
    argv = ["python", "-m", "emulator.cli.main", "up", "--name", nothing.name, *way]
    with subprocess.Popen(argv, env=nothing.env, stdout=subprocess.DEVNULL) as up:
        log = nothing.home / nothing.name / "logs" / f"{after}.log"
        wait_for(f"{after} is being started", log.exists, every_s=0.001)
        up.terminate()
        assert up.wait(timeout=20) in (0, 143)
    wait_for("nothing is left", lambda: not processes_of(nothing.name))


def test_ctrl_c_takes_the_cluster_down(nothing: Podwire) -> None:
    argv = ["python", "-m", "emulator.cli.main", "up", "--name", nothing.name, "--nodes", "1"]
    with subprocess.Popen(argv, env=nothing.env, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        for line in up.stdout:
            if line == "Ctrl-C takes the cluster down.\n":
                break
        up.send_signal(signal.SIGINT)
        assert up.stdout.read() == f"cluster '{nothing.name}' is down\n"
        assert up.wait(timeout=20) == 0
