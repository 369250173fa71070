"""etcd over TLS, with and without client certificates."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from emulator.errors import UsageError
from etcd.client import EtcdClient, EtcdError
from tests.etcd_servers import memory_etcd

if TYPE_CHECKING:
    from pathlib import Path


def _make_pair(directory: Path) -> tuple[str, str]:
    """Write a self-signed certificate for 127.0.0.1 and its key; return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "etcd")])
    start = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(cert_file), str(key_file)


async def test_calls_and_watches_over_tls(tmp_path: Path) -> None:
    cert, key = _make_pair(tmp_path)
    context = ssl.create_default_context(cafile=cert)
    async with (
        memory_etcd(cert_file=cert, key_file=key) as server,
        EtcdClient([f"https://{server.endpoint}"], ssl=context) as client,
    ):
        await client.put(b"a", bytes(1_000_000))
        async with client.watch(b"a", start_revision=2) as batches:
            assert len((await anext(batches)).events[0].kv.value) == 1_000_000


async def test_a_client_without_certificate_is_refused_where_one_is_demanded(
    tmp_path: Path,
) -> None:
    cert, key = _make_pair(tmp_path)
    async with memory_etcd(cert_file=cert, key_file=key, client_ca_file=cert) as server:
        url = f"https://{server.endpoint}"
        bare = ssl.create_default_context(cafile=cert)
        async with EtcdClient([url], ssl=bare, timeout_s=0.3) as client:
            with pytest.raises(EtcdError):
                await client.get(b"a")
        known = ssl.create_default_context(cafile=cert)
        known.load_cert_chain(cert, key)
        async with EtcdClient([url], ssl=known) as client:
            assert (await client.get(b"a")).count == 0


async def test_a_missing_certificate_file_is_one_clear_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    with pytest.raises(UsageError, match="TLS files of etcd: "):
        await memory_etcd(cert_file=missing, key_file=missing).start()
