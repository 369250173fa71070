"""The cluster's certificate authority.

One CA signs the API server's serving certificate, the admin's client certificate and each node's
kubelet certificate.  Keys are P-256: made and used in about a millisecond.  The library that does
it is 4 MiB: this module is for those who make certificates only.
"""

from __future__ import annotations

import datetime
import ipaddress
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from emulator.cluster.pki import Pair, write_private
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# kubeadm signs its CA for ten years; a laptop cluster lives shorter than one.
VALID_FOR: Final = datetime.timedelta(days=365)
# Clocks of containers and hosts differ by a little.
BACKDATE: Final = datetime.timedelta(minutes=5)


class Authority:
    """The cluster's certificate authority, kept in one directory of mode 0700."""

    def __init__(self, directory: Path, now: datetime.datetime) -> None:
        """Load ``ca.crt`` and ``ca.key``, or make them.  ``now`` is an aware instant."""
        self.directory = directory
        self._now = now
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ca = Pair(directory / "ca.crt", directory / "ca.key")
        if self.ca.key.exists():
            key = serialization.load_pem_private_key(self.ca.key.read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise UsageError(f"{self.ca.key}: not an EC key; remove {directory} to make new")
            self._key = key
            self._cert = x509.load_pem_x509_certificate(self.ca.cert.read_bytes())
        else:
            self._key = ec.generate_private_key(ec.SECP256R1())
            self._cert = self._make_ca()
            self._write(self.ca, self._cert, self._key)

    def _make_ca(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
        builder = self._builder(name, name, self._key.public_key())
        return (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certs=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - BACKDATE)
            .not_valid_after(self._now + VALID_FOR)
        )

    def issue(
        self,
        file_name: str,
        common_name: str,
        *,
        groups: Iterable[str] = (),
        names: Iterable[str] = (),
    ) -> Pair:
        """Return a certificate for a user (``groups`` are its O fields) or a server (``names``).

        ``names`` are DNS names and IP addresses.  An existing pair of that file name is kept,
        unless it lacks one of the names or is not valid any more.
        """
        names = list(names)
        pair = Pair(self.directory / f"{file_name}.crt", self.directory / f"{file_name}.key")
        if pair.cert.exists() and pair.key.exists() and self._serves(pair, names):
            return pair
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
        alternatives = [_general_name(name) for name in names]
        purpose = (
            ExtendedKeyUsageOID.SERVER_AUTH if alternatives else ExtendedKeyUsageOID.CLIENT_AUTH
        )
        builder = (
            self._builder(x509.Name(attributes), self._cert.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if alternatives:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        self._write(pair, builder.sign(self._key, hashes.SHA256()), key)
        return pair

    def _serves(self, pair: Pair, names: Iterable[str]) -> bool:
        """True if an existing certificate is good for all of ``names`` today."""
        cert = x509.load_pem_x509_certificate(pair.cert.read_bytes())
        if not cert.not_valid_before_utc <= self._now <= cert.not_valid_after_utc:
            return False
        try:
            found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return not list(names)
        return all(_general_name(name) in found for name in names)

    def _write(self, pair: Pair, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        write_private(
            pair.key,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
        pair.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))


def _usage(*, sign_certs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not sign_certs,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certs,
        crl_sign=sign_certs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
