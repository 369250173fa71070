"""Service account tokens: JSON Web Tokens the API server signs and believes.

``serviceaccounts/NAME/token`` issues them (``kubectl create token``, projected volumes).  They are
bound: a token ends with its time, with its service account and with the pod it was made for.
Source: k8s.io/kubernetes pkg/serviceaccount/claims.go; RFC 7515, RFC 7518 section 3.4 (ES256).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from agents.apiserver.config import UserInfo
from emulator.apimachinery import fielderrors as fe
from emulator.apimachinery import status as errors
from emulator.apimachinery.lifecycle import new_uid
from emulator.apimachinery.objects import dig
from emulator.apimachinery.times import rfc3339
from emulator.errors import UsageError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from emulator.apimachinery.objects import Obj

    # plural, namespace, name → the object, None where there is none.
    Peek = Callable[[str, str, str], Obj | None]

ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
DEFAULT_SECONDS: Final = 3600
MIN_SECONDS: Final = 600
MAX_SECONDS: Final = 2**32
# What kubelets ask for; such tokens are good for a year, as programs of old never read them anew
# (WarnOnlyBoundTokenExpirationPeriod, ExpirationExtensionSeconds).
KUBELET_SECONDS: Final = 3607
EXTENDED_SECONDS: Final = 365 * 24 * 3600
_CURVE_BYTES: Final = 32
_BINDABLE: Final = {"Pod": "pods", "Secret": "secrets", "Node": "nodes"}


def _pack(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class ServiceAccountTokens:
    """Issues and checks; ``peek`` looks objects up, ``now`` is Unix seconds."""

    def __init__(
        self, key_pem: bytes, peek: Peek, now: Callable[[], float], rng: random.Random
    ) -> None:
        """``key_pem`` is a P-256 key; UsageError for another."""
        key = serialization.load_pem_private_key(key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.key_size != 256:
            raise UsageError("service account tokens are signed with a P-256 key")
        self._key = key
        self._public = key.public_key()
        point = self._public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._key_id = _pack(hashlib.sha256(point).digest())
        self._peek, self._now, self._rng = peek, now, rng

    def issue(self, namespace: str, account: Obj, spec: Obj) -> Obj:
        """The ``status`` of a TokenRequest.  StatusError 422 for a bad one, 404, 409."""
        seconds = spec.get("expirationSeconds") or DEFAULT_SECONDS
        if not MIN_SECONDS <= seconds <= MAX_SECONDS:
            detail = (
                "may not specify a duration less than 10 minutes"
                if seconds < MIN_SECONDS
                else "may not specify a duration larger than 2^32 seconds"
            )
            found = [fe.invalid("spec.expirationSeconds", seconds, detail)]
            raise errors.invalid("TokenRequest", "authentication.k8s.io", "", found)
        meta, now = account["metadata"], int(self._now())
        private: Obj = {
            "namespace": namespace,
            "serviceaccount": {"name": meta["name"], "uid": meta["uid"]},
        }
        private |= self._bound(namespace, spec.get("boundObjectRef"))
        audiences, lasts = spec.get("audiences") or [ISSUER], seconds
        if seconds == KUBELET_SECONDS and "pod" in private and audiences == [ISSUER]:
            private["warnafter"], lasts = now + seconds, EXTENDED_SECONDS
        claims = {
            "aud": audiences,
            "exp": now + lasts,
            "iat": now,
            "iss": ISSUER,
            "jti": new_uid(self._rng),
            "kubernetes.io": private,
            "nbf": now,
            "sub": f"system:serviceaccount:{namespace}:{meta['name']}",
        }
        return {"token": self._sign(claims), "expirationTimestamp": rfc3339(now + seconds)}

    def _bound(self, namespace: str, reference: Obj | None) -> Obj:
        if not reference:
            return {}
        kind, name = str(reference.get("kind")), str(reference.get("name"))
        plural = _BINDABLE.get(kind)
        if plural is None:
            raise errors.bad_request(f"cannot bind token to object of type {kind}")
        found = self._peek(plural, "" if kind == "Node" else namespace, name)
        if found is None:
            raise errors.not_found(plural, "", name)
        uid = found["metadata"]["uid"]
        if reference.get("uid") not in (None, "", uid):
            text = (
                f"the UID in the bound object reference ({reference['uid']}) does not match the "
                f"UID in record. The object might have been deleted and then recreated"
            )
            raise errors.conflict(plural, "", name, text)
        return {kind.lower(): {"name": name, "uid": uid}}

    def _sign(self, claims: Obj) -> str:
        head = {"alg": "ES256", "kid": self._key_id}
        parts = [json.dumps(each, separators=(",", ":")).encode() for each in (head, claims)]
        text = ".".join(_pack(part) for part in parts)
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        raw = r.to_bytes(_CURVE_BYTES, "big") + s.to_bytes(_CURVE_BYTES, "big")
        return f"{text}.{_pack(raw)}"

    def user(self, token: bytes) -> UserInfo | None:
        """Whose token it is; None for one that is foreign, over, or whose owner is gone."""
        claims = self._claims(token)
        if claims is None or ISSUER not in claims.get("aud", ()):
            return None
        if not claims.get("nbf", 0) - 1 <= self._now() < claims.get("exp", 0):
            return None
        private = claims["kubernetes.io"]
        namespace, owner = private["namespace"], private["serviceaccount"]
        if not self._lives("serviceaccounts", namespace, owner):
            return None
        for kind, plural in _BINDABLE.items():
            bound = private.get(kind.lower())
            place = "" if kind == "Node" else namespace
            if bound is not None and not self._lives(plural, place, bound):
                return None
        return UserInfo(
            f"system:serviceaccount:{namespace}:{owner['name']}",
            ("system:serviceaccounts", f"system:serviceaccounts:{namespace}"),
        )

    def _lives(self, plural: str, namespace: str, reference: Obj) -> bool:
        found = self._peek(plural, namespace, reference["name"])
        return found is not None and dig(found, "metadata", "uid") == reference["uid"]

    def _claims(self, token: bytes) -> Any:
        """The claims of a token that carries our signature, else None."""
        text, _, signature = token.decode("latin-1").rpartition(".")
        if text.count(".") != 1:
            return None
        try:
            raw = _unpack(signature)
            if len(raw) != 2 * _CURVE_BYTES:
                return None
            r, s = (int.from_bytes(half, "big") for half in (raw[:_CURVE_BYTES], raw[-32:]))
            self._public.verify(
                encode_dss_signature(r, s), text.encode("latin-1"), ec.ECDSA(hashes.SHA256())
            )
            return json.loads(_unpack(text.partition(".")[2]))
        except (InvalidSignature, binascii.Error, ValueError):
            return None
