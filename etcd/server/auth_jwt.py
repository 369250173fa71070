"""JSON Web Tokens as auth tokens: ``--auth-token jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…``.

A token carries the user and the auth revision it was made at, so any change of users or roles makes
it old.  Sources: etcd server/auth/{jwt,options}.go, RFC 7515, RFC 7518.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from emulator.errors import UsageError
from etcd.core.auth import AuthInfo
from etcd.core.auth_tokens import DEFAULT_TTL_S
from etcd.core.errors import Code, EtcdError
from etcd.server.flags import parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_METHOD: Final = re.compile(r"(HS|RS|PS|ES)(256|384|512)|EdDSA")
_HASHES: Final = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_DIGESTS: Final = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}
# Bytes of each half of an ES… signature (RFC 7518 section 3.4).
_HALVES: Final = {"256": 32, "384": 48, "512": 66}
# Larger claims are none that we made.
MAX_TOKEN_BYTES = 8192


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


class _Signer:
    """One signing method with its keys; ``private`` None: can verify only."""

    def __init__(self, method: str, public: bytes, private: bytes) -> None:
        found = _METHOD.fullmatch(method)
        if found is None:
            raise UsageError(f"--auth-token: sign-method {method!r} is unknown; use e.g. RS256")
        self.method = method
        self._family, self._size = found[1] or "EdDSA", found[2] or ""
        self._private: Any = None
        self._public = None
        if self._family == "HS":
            if not private:
                raise UsageError(f"--auth-token: {method} needs priv-key=FILE, the shared secret")
            self._private = private
            return
        if not public and not private:
            raise UsageError(f"--auth-token: {method} needs priv-key=FILE or pub-key=FILE")
        try:
            if private:
                self._private = serialization.load_pem_private_key(private, None)
            self._public = _load_public(public) if public else self._private.public_key()
        except (ValueError, TypeError) as error:
            raise UsageError(f"--auth-token: keys of {method}: {error}") from None
        kinds: dict[str, tuple[type, ...]] = {
            "ES": (ec.EllipticCurvePublicKey,),
            "EdDSA": (ed25519.Ed25519PublicKey,),
        }
        if not isinstance(self._public, kinds.get(self._family, (rsa.RSAPublicKey,))):
            raise UsageError(f"--auth-token: the key is of another kind than {method} needs")
        if self._private is not None and self._private.public_key() != self._public:
            raise UsageError("--auth-token: pub-key and priv-key do not belong together")

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    def sign(self, data: bytes) -> bytes:
        key: Any = self._private
        match self._family:
            case "HS":
                return hmac.digest(key, data, _DIGESTS[self._size])
            case "RS":
                return cast("bytes", key.sign(data, padding.PKCS1v15(), _HASHES[self._size]))
            case "PS":
                return cast("bytes", key.sign(data, self._pss(), _HASHES[self._size]))
            case "ES":
                half = _HALVES[self._size]
                r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_HASHES[self._size])))
                return r.to_bytes(half, "big") + s.to_bytes(half, "big")
            case _:
                return cast("bytes", key.sign(data))

    def _pss(self) -> padding.PSS:
        return padding.PSS(padding.MGF1(_HASHES[self._size]), padding.PSS.DIGEST_LENGTH)

    def verify(self, signature: bytes, data: bytes) -> bool:
        key: Any = self._public
        try:
            match self._family:
                case "HS":
                    return hmac.compare_digest(self.sign(data), signature)
                case "RS":
                    key.verify(signature, data, padding.PKCS1v15(), _HASHES[self._size])
                case "PS":
                    key.verify(signature, data, self._pss(), _HASHES[self._size])
                case "ES":
                    half = _HALVES[self._size]
                    if len(signature) != 2 * half:
                        return False
                    r = int.from_bytes(signature[:half], "big")
                    s = int.from_bytes(signature[half:], "big")
                    key.verify(encode_dss_signature(r, s), data, ec.ECDSA(_HASHES[self._size]))
                case _:
                    key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def _load_public(data: bytes) -> object:
    if b"CERTIFICATE" in data:
        from cryptography import x509

        return x509.load_pem_x509_certificate(data).public_key()
    return serialization.load_pem_public_key(data)


class JwtTokens:
    """A TokenProvider that remembers nothing; ``wall_time`` gives seconds since 1970."""

    def __init__(self, signer: _Signer, ttl_s: float, wall_time: Callable[[], float]) -> None:
        self._signer = signer
        self._ttl_s = ttl_s
        self._wall_time = wall_time

    @classmethod
    def from_options(cls, options: Mapping[str, str], wall_time: Callable[[], float]) -> JwtTokens:
        """Read the options of ``--auth-token jwt,…``; UsageError for what cannot work."""
        ttl_s = parse_duration_s(options["ttl"]) if options.get("ttl") else DEFAULT_TTL_S
        if ttl_s is None or ttl_s <= 0:
            raise UsageError(f"--auth-token: ttl {options['ttl']!r}: write e.g. 10m")
        keys = []
        for option in ("pub-key", "priv-key"):
            path = options.get(option, "")
            try:
                with open(path or "/dev/null", "rb") as file:
                    keys.append(file.read())
            except OSError as error:
                raise UsageError(f"--auth-token: {option} {path}: {error.strerror}") from None
        return cls(_Signer(options.get("sign-method", ""), *keys), ttl_s, wall_time)

    def assign(self, username: str, revision: int, index: int, *, now: float) -> str:
        """See TokenProvider; EtcdError when only a public key is there."""
        if not self._signer.can_sign:
            # Raw upstream too.
            raise EtcdError(Code.UNKNOWN, "auth: token signing attempted with verify-only key")
        head = {"alg": self._signer.method, "typ": "JWT"}
        expiry = int(self._wall_time() + self._ttl_s)
        claims = {"exp": expiry, "revision": revision, "username": username}
        signed = ".".join(
            _encode(json.dumps(part, separators=(",", ":")).encode()) for part in (head, claims)
        )
        return f"{signed}.{_encode(self._signer.sign(signed.encode()))}"

    def info(self, token: str, revision: int, *, now: float) -> AuthInfo | None:
        """See TokenProvider; the revision is the token's own."""
        if len(token) > MAX_TOKEN_BYTES:
            return None
        signed, _, signature = token.rpartition(".")
        try:
            head_text, claims_text = signed.split(".")
            head, claims = json.loads(_decode(head_text)), json.loads(_decode(claims_text))
            if not isinstance(head, dict) or not isinstance(claims, dict):
                return None
            if head.get("alg") != self._signer.method:
                return None
            if not self._signer.verify(_decode(signature), signed.encode()):
                return None
        except (ValueError, RecursionError):
            return None
        expiry, made_at, username = (claims.get(name) for name in ("exp", "revision", "username"))
        if expiry is not None and (not _is_number(expiry) or self._wall_time() >= expiry):
            return None
        if not _is_number(made_at) or not isinstance(username, str):
            return None
        return AuthInfo(username, int(made_at))

    def invalidate(self, username: str) -> None:
        """Nothing to forget: the auth revision has moved on."""

    def clear(self) -> None:
        """Nothing to forget."""


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
