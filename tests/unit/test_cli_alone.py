"""Flags of the verbs that run one role: every wrong one is one line and exit code 2."""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emulator.cli.main import main
from emulator.cluster.authority import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator

ELSEWHERE = ["--underlay", "127.9.9.9"]


@pytest.fixture
def short_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home that does not exist yet, short enough for the sockets that would lie in it."""
    with tempfile.TemporaryDirectory(prefix="pw-") as directory:
        home = Path(directory) / "home"
        monkeypatch.setenv("PODWIRE_HOME", str(home))
        yield home


def complaint(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one line a wrong command line is answered with."""
    try:
        code = main(argv)
    except SystemExit as exit_:
        code = exit_.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["etcd", "--listen-client-urls", "foo"], "'foo' is not http(s)://HOST:PORT"),
        (["etcd", "--listen-client-urls", "http://127.0.0.1:99999"], "is not http(s)://HOST:PORT"),
        (["etcd", "--listen-client-urls", "http://a:1,http://b:2"], "expected IP in URL"),
        (["etcd", "--advertise-client-urls", "bar"], "--advertise-client-urls: 'bar' is not"),
        (["etcd", "--bogus"], "unrecognized arguments: --bogus"),
        (["controlplane", "--etcd-endpoints", "foo"], "'foo' is not http(s)://HOST:PORT"),
        (["controlplane", "--etcd-endpoints", "http://h:0"], "'http://h:0' is not"),
        (["controlplane", "--etcd-endpoints", ","], "--etcd-endpoints: no URL given"),
        (["controlplane", "--server", "1.2.3.4:99999"], "is not HOST or HOST:PORT"),
        (["controlplane", "--server", ""], "--server: '' is not HOST or HOST:PORT"),
        (["controlplane", "--bind-address", "300.1.1.1"], "--bind-address: '300.1.1.1' is not an"),
        (["controlplane", "/nonexistent.yaml"], "/nonexistent.yaml: No such file"),
        (["controlplane", "--cluster", "BAD_NAME"], "'BAD_NAME' is not a cluster name"),
        (["node"], "the following arguments are required: --name"),
        (["node", "--name", "NODE"], "--name: 'NODE' is not a node name"),
        (["node", "--name", "x"], "no node 'x' in the cluster file (node-0, node-1, node-2)"),
        (["node", "--name", "x", "--ip", "172.17.4.209"], "node 'x' needs a real address"),
        (["node", "--name", "x", "--ip", "10.0.0.1"], "--ip: 10.0.0.1 is not in nodeNetwork"),
        (["node", "--name", "x", "--ip", "ten"], "--ip: 'ten' is not an IPv4 address"),
        (["node", "--name", "x", "--ip", "172.17.4.201", *ELSEWHERE], "is node node-0's address"),
        (["node", "--name", "node-0", "--ip", "172.17.4.101"], "is the control plane's address"),
        (["node", "--name", "node-0", "--underlay", "host"], "--underlay: 'host' is not an IPv4"),
        (["node", "--name", "node-0", "--wait", "soon"], "--wait: invalid float value: 'soon'"),
        (["node", "--name", "node-0", "--wait", "nan"], "--wait: nan is not a number of seconds"),
        (["kubeconfig", "--server", "https://h:1"], "--server: needs --raw"),
        (["kubeconfig", "--raw", "--server", "h"], "--server: 'h' is not https://HOST:PORT"),
    ],
)
def test_a_wrong_flag_is_named_and_nothing_is_written(
    short_home: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    said: str,
) -> None:
    home = short_home
    if argv[0] == "kubeconfig":
        (home / "podwire").mkdir(parents=True)
    assert said in complaint(capsys, argv)
    assert argv[0] == "kubeconfig" or not home.exists()


def test_kubeconfig_is_printed_for_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PODWIRE_HOME", str(tmp_path))
    path = tmp_path / "podwire" / "kubeconfig"
    path.parent.mkdir()
    path.write_text(
        "clusters:\n- name: podwire\n  cluster:\n    server: https://10.10.64.101:6443\n"
    )
    assert main(["kubeconfig", "--raw", "--server", "https://127.0.0.1:6443"]) == 0
    assert "server: https://127.0.0.1:6443\n" in capsys.readouterr().out
    assert main(["kubeconfig"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert "10.10.64.101" in path.read_text()


def test_a_certificate_is_made_anew_when_it_lacks_a_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki", datetime.datetime.now(datetime.UTC))
    first = authority.issue("kubelet-a", "system:node", names=["127.9.9.9", "localhost"])
    before = first.cert.read_bytes()
    authority.issue("kubelet-a", "system:node", names=["127.9.9.9"])
    assert first.cert.read_bytes() == before
    authority.issue("kubelet-a", "system:node", names=["127.9.9.10"])
    assert first.cert.read_bytes() != before


def test_a_certificate_is_made_anew_when_it_has_expired(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    pair = Authority(tmp_path / "pki", now).issue("admin", "kubernetes-admin")
    before = pair.cert.read_bytes()
    later = Authority(tmp_path / "pki", now + datetime.timedelta(days=400))
    assert later.issue("admin", "kubernetes-admin").cert.read_bytes() != before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_no_traceback() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "emulator.cli.main", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "podwire: No space left on device\n")


def test_without_a_standard_output_a_verb_does_what_it_does() -> None:
    command = [sys.executable, "-m", "emulator.cli.main", "version"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
