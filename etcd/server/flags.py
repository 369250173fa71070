"""etcd's command-line flags, environment variables and configuration file.

Every flag of etcd 3.4 and 3.5 is known: one that is used, one that means nothing here (said in the
log when it is given), or one that would change what the server promises and is refused.  Sources:
etcd server/etcdmain/{config,help}.go, server/embed/config.go.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from emulator.errors import UsageError
from etcd.core.identity import DEFAULT_PEER_URL, DEFAULT_TOKEN
from etcd.server.config import EtcdConfig, ListenAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

CLIENT_URL: Final = "http://localhost:2379"
# etcd's own: where "0" means the default, and what no backend goes beyond comfortably.
DEFAULT_QUOTA_BYTES: Final = 2 * 1024**3
_BINARY: Final = "give it the real etcd, which Podwire uses by --etcd-endpoints"
_UNITS_S: Final = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0
}  # fmt: skip

# Flag -> what --help says.  A "?" in front marks a flag that may stand without a value.
USED: Final = {
    "name": "this member's name (default)",
    "data-dir": "directory of log and snapshots (<name>.etcd)",
    "snapshot-count": "log entries after which a snapshot is taken (by size alone)",
    "listen-client-urls": f"URLs to listen on for clients, http, https or unix ({CLIENT_URL})",
    "advertise-client-urls": "client URLs told to clients (as it listens)",
    "listen-peer-urls": "accepted; a single member has no peers and listens for none",
    "initial-advertise-peer-urls": f"peer URLs in the member list ({DEFAULT_PEER_URL})",
    "initial-cluster": "NAME=PEER_URL of the one member",
    "initial-cluster-token": f"goes into the ids ({DEFAULT_TOKEN})",
    "initial-cluster-state": "new or existing (new)",
    "quota-backend-bytes": "size of keys and values that raises the NOSPACE alarm (2 GiB)",
    "max-request-bytes": "largest request (1572864)",
    "max-txn-ops": "operations in a transaction (128)",
    "max-concurrent-streams": "calls at a time on a connection (10000)",
    "auto-compaction-mode": "periodic or revision (periodic)",
    "auto-compaction-retention": "hours, a duration, or revisions to keep; 0 keeps all (0)",
    "enable-v2": "?serve the keys API of etcd 2 (false)",
    "cert-file": "the server's certificate (PEM)",
    "key-file": "its key (PEM)",
    "client-cert-auth": "?a certificate's common name is its user (false)",
    "trusted-ca-file": "whose certificates clients must show (PEM)",
    "auto-tls": "?make a certificate for https URLs (false)",
    "auth-token": "simple or jwt,… (simple)",
    "auth-token-ttl": "seconds a simple token lives unused (300)",
    "bcrypt-cost": "cost of a password's hash, 4 to 31 (10)",
    "grpc-keepalive-min-time": "accepted: floods of pings end a connection, single ones never do",
    "grpc-keepalive-interval": "idle time before the server pings a client; 0 never (2h)",
    "grpc-keepalive-timeout": "time a client has to answer (20s)",
    "experimental-watch-progress-notify-interval": "time between progress responses (5s)",
    "listen-metrics-urls": "more URLs for /metrics and /health",
    "metrics": "basic or extensive (basic)",
    "logger": "zap or capnslog: accepted, the log's form is Podwire's",
    "log-level": "debug, info, warn, error, panic or fatal (info)",
    "log-outputs": "default, stderr, stdout or files (default)",
    "debug": "?the same as --log-level=debug",
    "unsafe-no-fsync": "?do not wait for the disk; a power cut loses the newest writes",
}
# Why nothing happens when they are given.
IGNORED: Final = {
    "heartbeat-interval": "a single member has nobody to tell",
    "election-timeout": "a single member is always the leader",
    "initial-election-tick-advance": "a single member is always the leader",
    "pre-vote": "a single member is always the leader",
    "strict-reconfig-check": "members are never added",
    "max-snapshots": "one snapshot is kept",
    "max-wals": "the log is what the snapshot lacks",
    "backend-batch-interval": "there is no backend file",
    "backend-batch-limit": "there is no backend file",
    "peer-cert-file": "there are no peers",
    "peer-key-file": "there are no peers",
    "peer-client-cert-auth": "there are no peers",
    "peer-trusted-ca-file": "there are no peers",
    "peer-cert-allowed-cn": "there are no peers",
    "peer-cert-allowed-hostname": "there are no peers",
    "peer-auto-tls": "there are no peers",
    "peer-crl-file": "there are no peers",
    "experimental-initial-corrupt-check": "checksums are checked at every start",
    "experimental-corrupt-check-time": "there are no peers to compare with",
    "experimental-backend-bbolt-freelist-type": "there is no backend file",
    "experimental-compaction-batch-limit": "compaction is done in one step",
    "experimental-compaction-sleep-interval": "compaction is done in one step",
    "experimental-peer-skip-client-san-verification": "there are no peers",
    "experimental-warning-apply-duration": "nothing is applied behind the log",
    "experimental-bootstrap-defrag-threshold-megabytes": "there is no backend file",
    "log-package-levels": "use --log-level",
    "log-format": "the log's form is Podwire's",
    "log-rotation-config-json": "the log is not rotated",
    "enable-log-rotation": "the log is not rotated",
    "v2-deprecation": "use --enable-v2",
}
_SWITCHES: Final = frozenset(
    (
        *(name for name, text in USED.items() if text.startswith("?")),
        *("initial-election-tick-advance", "pre-vote", "strict-reconfig-check"),
        *("peer-client-cert-auth", "peer-auto-tls", "experimental-initial-corrupt-check"),
        *("enable-log-rotation", "experimental-peer-skip-client-san-verification"),
        *("force-new-cluster", "enable-pprof", "experimental-enable-lease-checkpoint"),
    )
)
# What is refused unless it has a value that changes nothing.
REFUSED: Final = {
    "wal-dir": "",
    "discovery": "",
    "discovery-fallback": "proxy",
    "discovery-proxy": "",
    "discovery-srv": "",
    "discovery-srv-name": "",
    "proxy": "off",
    "force-new-cluster": "false",
    "client-crl-file": "",
    "client-cert-allowed-hostname": "",
    "cipher-suites": "",
    "cors": "*",
    "host-whitelist": "*",
    "enable-pprof": "false",
    "experimental-enable-v2v3": "",
    "experimental-enable-lease-checkpoint": "false",
}
_LEVELS: Final = ("debug", "info", "warn", "error", "panic", "fatal")
_DEFAULTS: Final = EtcdConfig()
# Newer names of the same flags.
_SYNONYMS: Final = {
    "watch-progress-notify-interval": "experimental-watch-progress-notify-interval",
}


class Options(NamedTuple):
    """What the flags say: the server's configuration, its log, what to tell the operator."""

    config: EtcdConfig
    log_level: str
    log_outputs: tuple[str, ...]
    notes: tuple[str, ...]


def names() -> dict[str, tuple[str, bool]]:
    """Return every flag with its help and whether it may stand without a value."""
    found = {name: (text.lstrip("?"), name in _SWITCHES) for name, text in USED.items()}
    for name, text in IGNORED.items():
        found[name] = (f"accepted without effect: {text}", name in _SWITCHES)
    for name in REFUSED:
        found[name] = ("not supported", name in _SWITCHES)
    for name, other in _SYNONYMS.items():
        found[name] = (f"the same as --{other}", False)
    return found


def read(
    given: Mapping[str, str], environ: Mapping[str, str], config_file: str | None = None
) -> Options:
    """Return what the flags given, the ETCD_* variables or the file say.

    Raises UsageError, which names the flag.
    """
    notes: list[str] = []
    config_file = config_file or environ.get("ETCD_CONFIG_FILE")
    if config_file:
        notes.append(f"configuration of {config_file}; other flags and variables are ignored")
        values = read_file(config_file)
    else:
        values = _with_environment(given, environ, notes)
    values = {_SYNONYMS.get(name, name): value for name, value in values.items()}
    for name, value in values.items():
        if name in IGNORED:
            notes.append(f"--{name} has no effect: {IGNORED[name]}")
        elif name in REFUSED and value != REFUSED[name]:
            raise UsageError(f"--{name}: this etcd cannot do that; {_BINARY}")
    return _Reader(values, notes).options()


def _with_environment(
    given: Mapping[str, str], environ: Mapping[str, str], notes: list[str]
) -> dict[str, str]:
    values = dict(given)
    known = {f"ETCD_{name.upper().replace('-', '_')}": name for name in names()}
    for variable, value in environ.items():
        if not variable.startswith("ETCD_") or variable == "ETCD_CONFIG_FILE":
            continue
        name = known.get(variable)
        if name is None:
            # Its value may be a password meant for somebody else.
            notes.append(f"unrecognized environment variable {variable}")
        elif name in given:
            notes.append(f"{variable} is shadowed by --{name}")
        elif value:
            values[name] = value
    return values


# Sections of the file that hold flags under shorter names.
_SECTIONS: Final = {"client-transport-security": "", "peer-transport-security": "peer-"}
_SECTION_KEYS: Final = {"ca-file": "trusted-ca-file"}


def read_file(path: str) -> dict[str, str]:
    """Return the flags of a YAML (or JSON) configuration file; UsageError for anything else."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            document = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config-file: {path}: {getattr(error, 'strerror', error)}") from None
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise UsageError(f"--config-file: {path}: {text}") from None
    if not isinstance(document, dict):
        raise UsageError(f"--config-file: {path}: not a mapping of flags")
    values: dict[str, str] = {}
    for key, value in document.items():
        if key in _SECTIONS and isinstance(value, dict):
            for name, inner in value.items():
                flag = _SECTIONS[key] + _SECTION_KEYS.get(str(name), str(name))
                _put(values, flag, inner, path)
        else:
            _put(values, str(key), value, path)
    return values


def _put(values: dict[str, str], name: str, value: object, path: str) -> None:
    if name not in names():
        raise UsageError(f"--config-file: {path}: unknown setting {name!r}")
    if isinstance(value, bool):
        values[name] = "true" if value else "false"
    elif isinstance(value, list):
        values[name] = ",".join(map(str, value))
    elif value is not None:
        values[name] = str(value)


class _Reader:
    """Turns texts into a configuration."""

    def __init__(self, values: Mapping[str, str], notes: list[str]) -> None:
        self._values = values
        self._notes = notes

    def text(self, name: str, default: str = "") -> str:
        return self._values.get(name) or default

    def switch(self, name: str) -> bool:
        value = self.text(name, "false")
        if value in ("1", "t", "T", "TRUE", "true", "True"):
            return True
        if value in ("0", "f", "F", "FALSE", "false", "False"):
            return False
        raise UsageError(f"--{name}: {value!r} is neither true nor false")

    def number(self, name: str, default: int, *, low: int = 0, high: int = 2**63 - 1) -> int:
        value = self._values.get(name)
        if value is None:
            return default
        try:
            number = int(value)
        except ValueError:
            raise UsageError(f"--{name}: {value!r} is not a number") from None
        if not low <= number <= high:
            raise UsageError(f"--{name}: {number} is not between {low} and {high}")
        return number

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, choices[0])
        if value not in choices:
            raise UsageError(f"--{name}: {value!r} is not one of {', '.join(choices)}")
        return value

    def duration_s(self, name: str, default_s: float) -> float:
        value = self._values.get(name)
        if value is None:
            return default_s
        seconds = parse_duration_s(value)
        if seconds is None or seconds < 0:
            raise UsageError(f"--{name}: {value!r} is not a duration such as 10m or 1h30m")
        return seconds

    def options(self) -> Options:
        name = self.text("name", "default")
        auto_tls = self.switch("auto-tls")
        cert, key, ca = (self._values.get(f) or None for f in ("cert-file", "key-file",
                                                              "trusted-ca-file"))  # fmt: skip
        if (cert is None) != (key is None):
            raise UsageError("--cert-file and --key-file belong together; one is missing")
        if self.switch("client-cert-auth") and ca is None:
            raise UsageError("--client-cert-auth: needs --trusted-ca-file")
        secure = cert is not None or auto_tls
        listen = tuple(
            _address("--listen-client-urls", url, secure=secure)
            for url in self.urls("listen-client-urls", CLIENT_URL)
        )
        metrics = tuple(
            _address("--listen-metrics-urls", url, secure=secure)
            for url in self.urls("listen-metrics-urls", "")
        )
        self._note_insecure((*listen, *metrics))
        advertised = self.urls("advertise-client-urls", "")
        for url in advertised:
            _split("--advertise-client-urls", url)
        mode = self.choice("auto-compaction-mode", ("periodic", "revision"))
        self.choice("metrics", ("basic", "extensive"))
        self.choice("logger", ("zap", "capnslog"))
        config = EtcdConfig(
            name=name,
            data_dir=self.text("data-dir", f"{name}.etcd"),
            listen_host=listen[0].host,
            listen_port=listen[0].port,
            listen_at=listen,
            metrics_at=metrics,
            advertise_client_urls=advertised,
            durability="none" if self.switch("unsafe-no-fsync") else "fsync",
            quota_bytes=self._quota(),
            max_request_bytes=self.number("max-request-bytes", _DEFAULTS.max_request_bytes),
            max_txn_ops=self.number("max-txn-ops", _DEFAULTS.max_txn_ops),
            max_streams=self.number(
                "max-concurrent-streams", _DEFAULTS.max_streams, low=1, high=2**32 - 1
            ),
            snapshot_count=self.number("snapshot-count", 0),
            compaction_mode=mode,
            compaction_retention=self._retention(mode),
            progress_interval_s=self.duration_s(
                "experimental-watch-progress-notify-interval", _DEFAULTS.progress_interval_s
            ),
            keepalive_interval_s=self.duration_s(
                "grpc-keepalive-interval", _DEFAULTS.keepalive_interval_s
            ),
            keepalive_timeout_s=self.duration_s(
                "grpc-keepalive-timeout", _DEFAULTS.keepalive_timeout_s
            ),
            enable_v2=self.switch("enable-v2"),
            peer_urls=self._peers(name),
            cluster_token=self.text("initial-cluster-token", DEFAULT_TOKEN),
            auth_token=self.text("auth-token", "simple"),
            auth_token_ttl_s=float(self.number("auth-token-ttl", int(_DEFAULTS.auth_token_ttl_s))),
            bcrypt_cost=self.number("bcrypt-cost", _DEFAULTS.bcrypt_cost, low=4, high=31),
            cert_file=cert,
            key_file=key,
            client_cert_auth=self.switch("client-cert-auth"),
            client_ca_file=ca,
            auto_tls=auto_tls,
        )
        self.duration_s("grpc-keepalive-min-time", 5.0)
        level = self.choice("log-level", ("info", *_LEVELS))
        outputs = tuple(filter(None, self.text("log-outputs", "default").split(",")))
        if self.switch("debug"):
            level = "debug"
        return Options(config, level, outputs, tuple(self._notes))

    def _note_insecure(self, addresses: tuple[ListenAddress, ...]) -> None:
        """Say which flags do nothing for addresses without TLS (server/embed/config.go)."""
        flags = ["cert-file", "key-file", "trusted-ca-file"]
        given = [f"--{name}" for name in flags if self._values.get(name)]
        if self.switch("client-cert-auth"):
            given.append("--client-cert-auth")
        for address in addresses:
            if given and not address.tls:
                where = address.path or f"{address.host}:{address.port}"
                self._notes.append(f"{where} is not https: without effect there: {' '.join(given)}")

    def urls(self, name: str, default: str) -> tuple[str, ...]:
        return tuple(filter(None, self.text(name, default).split(",")))

    def _quota(self) -> int:
        quota = self.number("quota-backend-bytes", 0, low=-(2**63))
        if quota == 0:
            return DEFAULT_QUOTA_BYTES
        return max(quota, 0)

    def _retention(self, mode: str) -> float:
        """Return revisions or seconds; a bare number of ``periodic`` is hours."""
        value = self.text("auto-compaction-retention", "0")
        if value.isascii() and value.isdigit():
            return int(value) * (3600.0 if mode == "periodic" else 1)
        seconds = parse_duration_s(value) if mode == "periodic" else None
        if seconds is None or seconds < 0:
            kind = "hours or a duration" if mode == "periodic" else "a number of revisions"
            raise UsageError(f"--auto-compaction-retention: {value!r} is not {kind}")
        return seconds

    def _peers(self, name: str) -> tuple[str, ...]:
        if self.choice("initial-cluster-state", ("new", "existing")) == "existing":
            self._notes.append("--initial-cluster-state=existing: one member is its own cluster")
        if self._values.get("listen-peer-urls"):
            for url in self.urls("listen-peer-urls", ""):
                _split("--listen-peer-urls", url)
            self._notes.append("--listen-peer-urls: not listened on, a single member has no peers")
        advertised = self.urls("initial-advertise-peer-urls", DEFAULT_PEER_URL)
        for url in advertised:
            _split("--initial-advertise-peer-urls", url)
        members: dict[str, list[str]] = {}
        for part in self.urls("initial-cluster", ""):
            member, equals, url = part.partition("=")
            if not equals or not member:
                raise UsageError(f"--initial-cluster: {part!r} is not NAME=PEER_URL")
            _split("--initial-cluster", url)
            members.setdefault(member, []).append(url)
        if not members:
            return advertised
        if len(members) > 1:
            raise UsageError(
                f"--initial-cluster: {len(members)} members, but this etcd is a single one; run "
                "the real etcd for a cluster and point Podwire at it with --etcd-endpoints"
            )
        if name not in members:
            raise UsageError(
                f'couldn\'t find local name "{name}" in the initial cluster configuration'
            )
        if sorted(members[name]) != sorted(advertised):
            if "initial-advertise-peer-urls" in self._values:
                raise UsageError(
                    f"--initial-cluster has {name}={','.join(members[name])} but "
                    f"--initial-advertise-peer-urls is {','.join(advertised)}"
                )
            advertised = tuple(members[name])
        return advertised


def parse_duration_s(text: str) -> float | None:
    """Return a Go duration (``1h30m``, ``500ms``, ``0``) in seconds, None if it is none."""
    if text == "0":
        return 0.0
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text.lstrip("+-")
    parts = re.findall(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)", rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        return None
    return sign * sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _split(flag: str, url: str) -> tuple[str, str, int]:
    """Return (scheme, host or socket path, port); UsageError names the flag."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme in ("unix", "unixs") and (parts.netloc or parts.path):
        return scheme, parts.netloc + parts.path, 0
    if scheme not in ("http", "https") or host is None or port is None:
        raise UsageError(f"{flag}: {url!r} is not http(s)://HOST:PORT or unix://PATH")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(f"{flag}: {url!r} has a path; http(s)://HOST:PORT is wanted")
    return scheme, host, port


def _address(flag: str, url: str, *, secure: bool) -> ListenAddress:
    scheme, host, port = _split(flag, url)
    tls = scheme in ("https", "unixs")
    if tls and not secure:
        raise UsageError(f"{flag}: {url} needs --cert-file and --key-file, or --auto-tls")
    if scheme in ("unix", "unixs"):
        return ListenAddress("", 0, tls, host)
    if host == "localhost":
        return ListenAddress("127.0.0.1", port, tls)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(f"{flag}: expected IP in URL for binding ({url})") from None
    return ListenAddress(host, port, tls)
