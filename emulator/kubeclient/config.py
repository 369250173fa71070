"""Where the API server is and who we are: kubeconfig files and their TLS."""

from __future__ import annotations

import base64
import binascii
import functools
import os
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

# A process is few users of few servers.
MAX_SSL_CONTEXTS: Final = 8


@dataclass(frozen=True, slots=True)
class KubeConfig:
    """Server and credentials; PEM contents, not paths.

    ``server`` is a URL (``https://127.0.0.101:6443``).  Token, client certificate, both or
    neither may be given; neither is ever printed.  ``tls_server_name`` overrides the
    name checked in the certificate.
    """

    server: str
    ca_pem: str = ""
    token: str = field(default="", repr=False)
    client_cert_pem: str = ""
    client_key_pem: str = field(default="", repr=False)
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    namespace: str = "default"

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], context: str = "") -> KubeConfig:
        """Read a kubeconfig; ``context`` defaults to its current one.

        Raises UsageError naming the file and the field for anything missing or malformed.
        """
        file = Path(path)
        try:
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"kubeconfig {file}: {error.strerror or error}") from None
        except yaml.YAMLError as error:
            raise UsageError(f"kubeconfig {file} is not YAML: {error}") from None
        return cls.from_dict(document, context, where=f"kubeconfig {file}", base=file.parent)

    @classmethod
    def from_dict(
        cls,
        document: Any,
        context: str = "",
        *,
        where: str = "kubeconfig",
        base: Path | None = None,
    ) -> KubeConfig:
        """Build from a parsed kubeconfig; file names in it are relative to ``base``."""
        if not isinstance(document, dict):
            raise UsageError(f"{where}: expected a mapping, found {type(document).__name__}")
        name = context or document.get("current-context") or ""
        if not name:
            raise UsageError(f"{where}: current-context is not set and no context was named")
        entry = _entry(document, "contexts", name, "context", where)
        cluster = _entry(document, "clusters", entry.get("cluster", ""), "cluster", where)
        user: Mapping[str, Any] = {}
        if entry.get("user"):
            user = _entry(document, "users", entry["user"], "user", where)
        server = cluster.get("server")
        if not isinstance(server, str) or not server.startswith(("http://", "https://")):
            raise UsageError(
                f"{where}: cluster {entry.get('cluster')!r} needs server: https://HOST:PORT,"
                f" found {server!r}"
            )
        token = str(user.get("token") or "")
        if not token and user.get("tokenFile"):
            token = _read(Path(user["tokenFile"]), "tokenFile", where, base).strip()
        return cls(
            server=server.rstrip("/"),
            ca_pem=_pem(cluster, "certificate-authority", where, base),
            token=token,
            client_cert_pem=_pem(user, "client-certificate", where, base),
            client_key_pem=_pem(user, "client-key", where, base),
            tls_server_name=str(cluster.get("tls-server-name") or ""),
            insecure_skip_tls_verify=bool(cluster.get("insecure-skip-tls-verify")),
            namespace=str(entry.get("namespace") or "default"),
        )

    def ssl_context(self) -> ssl.SSLContext | None:
        """The context for this server, one for all who ask; None for plain http.

        Only the cluster's CA is trusted when one is given; the system's bundle otherwise.
        """
        return None if self.server.startswith("http://") else _ssl_context(self)


@functools.lru_cache(maxsize=MAX_SSL_CONTEXTS)
def _ssl_context(config: KubeConfig) -> ssl.SSLContext:
    # Some 200 KiB each in OpenSSL; one made before a fork costs the children nothing.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if config.insecure_skip_tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif config.ca_pem:
            context.load_verify_locations(cadata=config.ca_pem)
        else:
            context.load_default_certs()
        if config.client_cert_pem:
            _load_client_cert(context, config.client_cert_pem, config.client_key_pem)
    except ssl.SSLError as error:
        raise UsageError(f"kubeconfig for {config.server}: bad certificate: {error}") from None
    return context


def _load_client_cert(context: ssl.SSLContext, cert_pem: str, key_pem: str) -> None:
    # The ssl module reads certificate chains from files only.
    handle, path = tempfile.mkstemp(prefix="podwire-client-")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(cert_pem.rstrip("\n") + "\n" + key_pem)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)


def _entry(
    document: Mapping[str, Any], table: str, name: str, field: str, where: str
) -> Mapping[str, Any]:
    rows = document.get(table) or []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("name") == name and isinstance(row.get(field), dict):
            found: Mapping[str, Any] = row[field]
            return found
    raise UsageError(f"{where}: {table} has no entry named {name!r}")


def _pem(section: Mapping[str, Any], field: str, where: str, base: Path | None) -> str:
    data = section.get(f"{field}-data")
    if data:
        try:
            return base64.b64decode(data, validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            raise UsageError(f"{where}: {field}-data is not base64 of PEM text") from None
    path = section.get(field)
    return _read(Path(path), field, where, base) if path else ""


def _read(path: Path, field: str, where: str, base: Path | None) -> str:
    file = path if path.is_absolute() or base is None else base / path
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{where}: {field} {file}: {error.strerror or error}") from None
