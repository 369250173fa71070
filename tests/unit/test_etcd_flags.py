"""etcd's flags, variables and configuration file: what they mean, and what is refused how."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from emulator.cli.main import main
from emulator.errors import UsageError
from etcd.core.identity import derive_ids
from etcd.server.config import EtcdConfig, ListenAddress
from etcd.server.flags import names, parse_duration_s, read

if TYPE_CHECKING:
    from pathlib import Path


def config(**flags: str) -> EtcdConfig:
    return read({name.replace("_", "-"): value for name, value in flags.items()}, {}).config


def test_without_flags_it_is_etcds_default_member() -> None:
    default = config()
    assert default.data_dir == "default.etcd"
    assert default.listen_at == (ListenAddress("127.0.0.1", 2379),)
    assert default.quota_bytes == 2 * 1024**3
    # The ids every etcd with default flags has.
    ids = derive_ids(default.peer_urls, default.cluster_token)
    assert [f"{number:x}" for number in ids] == ["cdf818194e3a8c32", "8e9e05c52164694d"]


def test_an_authority_for_clients_alone_makes_them_show_certificates() -> None:
    """And the common name is no user then, as with the real etcd."""
    got = config(cert_file="c", key_file="k", trusted_ca_file="ca")
    assert (got.client_ca_file, got.client_cert_auth) == ("ca", False)


def test_flags_become_the_configuration() -> None:
    got = config(
        name="n1",
        listen_client_urls="http://127.0.0.1:1,https://[::1]:2,unix:///run/etcd.sock",
        cert_file="c",
        key_file="k",
        client_cert_auth="true",
        trusted_ca_file="ca",
        initial_cluster="n1=http://10.0.0.1:2380",
        initial_cluster_token="t",
        snapshot_count="5000",
        quota_backend_bytes="-1",
        max_request_bytes="1000",
        max_txn_ops="3",
        max_concurrent_streams="4",
        auto_compaction_retention="1h30m",
        grpc_keepalive_interval="0s",
        experimental_watch_progress_notify_interval="10m",
        unsafe_no_fsync="",
    )
    assert got.data_dir == "n1.etcd"
    assert got.listen_at == (
        ListenAddress("127.0.0.1", 1),
        ListenAddress("::1", 2, True),
        ListenAddress("", 0, False, "/run/etcd.sock"),
    )
    assert (got.cert_file, got.key_file, got.client_ca_file) == ("c", "k", "ca")
    assert (got.peer_urls, got.cluster_token) == (("http://10.0.0.1:2380",), "t")
    assert (got.snapshot_count, got.quota_bytes) == (5000, 0)
    assert (got.max_request_bytes, got.max_txn_ops, got.max_streams) == (1000, 3, 4)
    assert (got.compaction_mode, got.compaction_retention) == ("periodic", 5400.0)
    assert (got.keepalive_interval_s, got.progress_interval_s) == (0.0, 600.0)
    assert got.durability == "fsync"


@pytest.mark.parametrize(
    ("mode", "retention", "expected"),
    [("periodic", "2", 7200.0), ("periodic", "5m", 300.0), ("revision", "1000", 1000)],
)
def test_retention_is_hours_a_duration_or_revisions(
    mode: str, retention: str, expected: float
) -> None:
    got = config(auto_compaction_mode=mode, auto_compaction_retention=retention)
    assert got.compaction_retention == expected


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"listen-client-urls": "foo"}, "--listen-client-urls: 'foo' is not http"),
        ({"listen-client-urls": "http://a:1"}, "expected IP in URL for binding (http://a:1)"),
        ({"listen-client-urls": "https://127.0.0.1:1"}, "needs --cert-file and --key-file"),
        ({"advertise-client-urls": "http://a:1/x"}, "has a path"),
        ({"initial-cluster": "default=http://a:1,b=http://b:2"}, "with --etcd-endpoints"),
        ({"initial-cluster": "x=http://a:1"}, 'couldn\'t find local name "default"'),
        ({"initial-cluster": "http://a:1"}, "is not NAME=PEER_URL"),
        (
            {
                "initial-cluster": "default=http://a:1",
                "initial-advertise-peer-urls": "http://b:1",
            },
            "--initial-cluster has default=http://a:1 but",
        ),
        ({"initial-cluster-state": "old"}, "'old' is not one of new, existing"),
        ({"auto-compaction-mode": "x"}, "'x' is not one of periodic, revision"),
        ({"auto-compaction-retention": "zz"}, "'zz' is not hours or a duration"),
        ({"auto-compaction-mode": "revision", "auto-compaction-retention": "1h"}, "revisions"),
        ({"enable-v2": "yes"}, "--enable-v2: 'yes' is neither true nor false"),
        ({"snapshot-count": "many"}, "--snapshot-count: 'many' is not a number"),
        ({"bcrypt-cost": "50"}, "--bcrypt-cost: 50 is not between 4 and 31"),
        ({"grpc-keepalive-interval": "5"}, "is not a duration"),
        ({"cert-file": "x"}, "one is missing"),
        ({"client-cert-auth": "true"}, "--client-cert-auth: needs --trusted-ca-file"),
        ({"wal-dir": "/x"}, "--wal-dir: this etcd cannot do that"),
        ({"force-new-cluster": "true"}, "--force-new-cluster: this etcd cannot do that"),
        ({"log-level": "loud"}, "'loud' is not one of"),
    ],
)
def test_a_wrong_value_is_named(flags: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(flags, {})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_has_no_effect_is_said() -> None:
    options = read({"heartbeat-interval": "50", "listen-peer-urls": "http://127.0.0.1:1"}, {})
    assert [note.split(":")[0] for note in options.notes] == [
        "--heartbeat-interval has no effect",
        "--listen-peer-urls",
    ]


def test_tls_that_does_nothing_is_said() -> None:
    tls = {"cert-file": "c", "key-file": "k", "trusted-ca-file": "ca", "client-cert-auth": "true"}
    options = read(tls | {"listen-client-urls": "https://127.0.0.1:1,http://127.0.0.1:2"}, {})
    assert options.notes == (
        "127.0.0.1:2 is not https: without effect there: "
        "--cert-file --key-file --trusted-ca-file --client-cert-auth",
    )


def test_variables_count_where_no_flag_is_given() -> None:
    environ = {"ETCD_NAME": "env", "ETCD_ENABLE_V2": "true", "ETCD_FOO": "1", "HOME": "/"}
    options = read({"name": "flag"}, environ)
    assert (options.config.name, options.config.enable_v2) == ("flag", True)
    assert options.notes == (
        "ETCD_NAME is shadowed by --name",
        "unrecognized environment variable ETCD_FOO",
    )


def test_a_file_stands_for_all_flags(tmp_path: Path) -> None:
    path = tmp_path / "etcd.yml"
    path.write_text(
        "name: filed\nenable-v2: true\nmax-txn-ops: 7\nlog-outputs: [stderr]\n"
        "auto-compaction-retention: '2'\n"
        "client-transport-security:\n  cert-file: c\n  key-file: k\n  auto-tls: false\n"
        "peer-transport-security:\n  cert-file: p\n"
    )
    options = read({"name": "flag"}, {"ETCD_NAME": "env"}, str(path))
    got = options.config
    assert (got.name, got.enable_v2, got.max_txn_ops) == ("filed", True, 7)
    assert (got.cert_file, got.compaction_retention) == ("c", 7200.0)
    assert options.log_outputs == ("stderr",)
    assert read({}, {"ETCD_CONFIG_FILE": str(path)}).config.name == "filed"


@pytest.mark.parametrize(
    ("text", "said"),
    [("nonsense: 1\n", "unknown setting 'nonsense'"), ("- 1\n", "not a mapping"), ("a: [", "flow")],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "etcd.yml"
    path.write_text(text)
    with pytest.raises(UsageError, match="--config-file") as caught:
        read({}, {}, str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="No such file"):
        read({}, {}, str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1h30m", 5400), ("500ms", 0.5), ("1.5s", 1.5), ("-2m", -120), ("5", None),
     ("", None), ("1x", None), ("s", None)],
)  # fmt: skip
def test_durations_are_gos(text: str, seconds: float | None) -> None:
    assert parse_duration_s(text) == seconds


def test_every_flag_of_etcds_help_is_known() -> None:
    expected = (
        "name data-dir wal-dir snapshot-count heartbeat-interval election-timeout "
        "listen-peer-urls listen-client-urls max-snapshots max-wals quota-backend-bytes "
        "max-txn-ops max-request-bytes max-concurrent-streams grpc-keepalive-min-time "
        "grpc-keepalive-interval grpc-keepalive-timeout initial-advertise-peer-urls "
        "initial-cluster initial-cluster-state initial-cluster-token advertise-client-urls "
        "discovery discovery-srv strict-reconfig-check pre-vote auto-compaction-retention "
        "auto-compaction-mode enable-v2 cert-file key-file client-cert-auth client-crl-file "
        "trusted-ca-file auto-tls peer-cert-file peer-key-file peer-client-cert-auth "
        "peer-trusted-ca-file peer-auto-tls cipher-suites cors host-whitelist auth-token "
        "bcrypt-cost auth-token-ttl enable-pprof metrics listen-metrics-urls logger log-outputs "
        "log-level proxy experimental-watch-progress-notify-interval force-new-cluster debug"
    )
    assert set(expected.split()) <= set(names())


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["etcd", "--version"]) == 0
    assert capsys.readouterr().out.startswith("etcd Version: 3.5.")


def test_the_log_goes_where_it_is_told(tmp_path: Path) -> None:
    from emulator.cli import etcd as verb

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        root.handlers[:] = [logging.NullHandler()]
        path = tmp_path / "log"
        verb._direct_log(read({"log-outputs": f"{path},stderr", "log-level": "warn"}, {}))
        logging.getLogger("x").info("quiet")
        logging.getLogger("x").warning("loud")
        assert len(root.handlers) == 2
        root.handlers[0].close()
        assert path.read_text() == "loud\n"
    finally:
        root.handlers[:] = before
        root.setLevel(level)
