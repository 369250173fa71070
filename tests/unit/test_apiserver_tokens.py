"""Service account tokens: what they say, and when they end."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agents.apiserver.tokens import ServiceAccountTokens
from emulator.apimachinery.status import StatusError
from emulator.apimachinery.times import parse_rfc3339
from emulator.errors import UsageError

ACCOUNT = {"metadata": {"name": "bot", "namespace": "ns", "uid": "u1"}}
POD = {"metadata": {"name": "p", "namespace": "ns", "uid": "u2"}}


def pem(key: Any) -> bytes:
    data: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return data


class World:
    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.objects: dict[tuple[str, str, str], Any] = {
            ("serviceaccounts", "ns", "bot"): ACCOUNT,
            ("pods", "ns", "p"): POD,
        }
        self.tokens = ServiceAccountTokens(
            pem(ec.generate_private_key(ec.SECP256R1())),
            lambda *key: self.objects.get(key),
            lambda: self.now,
            random.Random(1),
        )

    def issue(self, **spec: Any) -> bytes:
        text: str = self.tokens.issue("ns", ACCOUNT, spec)["token"]
        return text.encode()


def test_a_token_tells_who_its_bearer_is_until_its_time_is_over() -> None:
    world = World()
    token = world.issue()
    body = token.split(b".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    assert claims["sub"] == "system:serviceaccount:ns:bot"
    assert claims["exp"] == claims["iat"] + 3600
    user = world.tokens.user(token)
    assert user is not None
    assert user.name == "system:serviceaccount:ns:bot"
    assert user.groups == ("system:serviceaccounts", "system:serviceaccounts:ns")
    world.now += 3600
    assert world.tokens.user(token) is None


def test_a_token_ends_with_the_pod_and_the_account_it_is_bound_to() -> None:
    world = World()
    bound = world.issue(boundObjectRef={"kind": "Pod", "name": "p", "uid": "u2"})
    assert world.tokens.user(bound) is not None
    del world.objects["pods", "ns", "p"]
    assert world.tokens.user(bound) is None
    free = world.issue()
    world.objects["serviceaccounts", "ns", "bot"] = {"metadata": {"uid": "another"}}
    assert world.tokens.user(free) is None


def test_forged_foreign_and_broken_tokens_are_nobodys() -> None:
    world, other = World(), World()
    token = world.issue()
    head, body, signature = token.split(b".")
    forged = base64.urlsafe_b64encode(b'{"aud":["x"]}').rstrip(b"=")
    for bad in (
        b"",
        b"..",
        b"a.b.c",
        b"\xff.\xff.\xff",
        head + b"." + forged + b"." + signature,
        head + b"." + body + b".",
        other.issue(),
        world.issue(audiences=["somebody-else"]),
    ):
        assert world.tokens.user(bad) is None


def test_bad_requests_are_told() -> None:
    world = World()
    with pytest.raises(StatusError, match="less than 10 minutes"):
        world.issue(expirationSeconds=60)
    with pytest.raises(StatusError, match='pods "gone" not found'):
        world.issue(boundObjectRef={"kind": "Pod", "name": "gone"})
    with pytest.raises(UsageError, match="P-256"):
        ServiceAccountTokens(
            pem(ec.generate_private_key(ec.SECP384R1())),
            lambda *_: None,
            lambda: 0.0,
            random.Random(1),
        )


def test_a_kubelets_token_is_good_for_a_year() -> None:
    """Programs of old read their token once; the answer still says when it should be read anew."""
    world = World()
    reference = {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "u2"}
    spec = {"expirationSeconds": 3607, "boundObjectRef": reference}
    status = world.tokens.issue("ns", ACCOUNT, spec)
    assert parse_rfc3339(status["expirationTimestamp"]) == world.now + 3607
    token = status["token"].encode()
    world.now += 360 * 24 * 3600
    assert world.tokens.user(token) is not None
    world.now += 6 * 24 * 3600
    assert world.tokens.user(token) is None
