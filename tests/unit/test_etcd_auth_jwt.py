"""JSON Web Tokens: every signing method, and tokens that are none of ours."""

from __future__ import annotations

import base64
import json
import random
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from emulator.errors import UsageError
from etcd.client import EtcdClient
from etcd.core import errors
from etcd.core.auth import AuthInfo
from etcd.core.errors import EtcdError
from etcd.server.auth_jwt import JwtTokens
from tests.etcd_auth_calls import ALICE, ROOT, caller, populate
from tests.etcd_servers import memory_etcd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "PS512": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


class Wall:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def _files(directory: Path, method: str) -> dict[str, str]:
    """Write a key pair for a method; return the options that name it."""
    private, public = directory / "private.pem", directory / "public.pem"
    if method.startswith("HS"):
        private.write_bytes(b"secret shared by all members")
        return {"sign-method": method, "priv-key": str(private)}
    key = KEYS[method]()
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return {"sign-method": method, "priv-key": str(private), "pub-key": str(public)}


@pytest.mark.parametrize("method", ["HS256", "HS512", *KEYS])
def test_a_token_tells_its_user_and_revision_until_it_expires(method: str, tmp_path: Path) -> None:
    wall = Wall()
    options = {**_files(tmp_path, method), "ttl": "10m"}
    tokens = JwtTokens.from_options(options, wall)
    token = tokens.assign("alice", 7, 1, now=0.0)
    assert tokens.info(token, 99, now=0.0) == AuthInfo("alice", 7)
    wall.now += 599
    assert tokens.info(token, 99, now=0.0) is not None
    wall.now += 1
    assert tokens.info(token, 99, now=0.0) is None
    if "pub-key" in options:
        del options["priv-key"]
        verifier = JwtTokens.from_options(options, wall)
        wall.now -= 600
        assert verifier.info(token, 99, now=0.0) == AuthInfo("alice", 7)
        with pytest.raises(EtcdError, match="verify-only key"):
            verifier.assign("alice", 7, 1, now=0.0)


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_tokens_of_others_and_garbage_are_nobody_s(tmp_path: Path) -> None:
    tokens = JwtTokens.from_options(_files(tmp_path, "HS256"), Wall())
    good = tokens.assign("alice", 7, 1, now=0.0)
    head, claims, signature = good.split(".")
    none = _part({"alg": "none", "typ": "JWT"})
    root = _part({"username": "root", "revision": 7, "exp": 9e9})
    bad = ["", ".", "..", "a.b.c", f"{none}.{root}.", f"{head}.{root}.{signature}", f"{good}x"]
    bad += [f"{head}.{claims}.", "x" * 10_000, "é.é.é", f"{_part([])}.{_part([])}.{signature}"]
    rng = random.Random(1)
    for _ in range(200):
        at = rng.randrange(len(good))
        bad.append(good[:at] + rng.choice("AZ09-_.=") + good[at + 1 :])
    for token in bad:
        found = tokens.info(token, 7, now=0.0)
        # Bits that fill the last letter of a part up say nothing.
        assert found == (AuthInfo("alice", 7) if _decoded(token) == _decoded(good) else None)
    assert all(tokens.info(token, 7, now=0.0) is None for token in bad[:11])


def _decoded(token: str) -> list[bytes] | None:
    try:
        return [
            base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True)
            for part in token.split(".")
        ]
    except ValueError:
        return None


def test_keys_that_do_not_fit_are_told(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    options, foreign = _files(mine, "ES256"), _files(other, "ES256")
    with pytest.raises(UsageError, match="do not belong together"):
        JwtTokens.from_options({**options, "pub-key": foreign["pub-key"]}, Wall())
    with pytest.raises(UsageError, match="of another kind than RS256"):
        JwtTokens.from_options({**options, "sign-method": "RS256"}, Wall())


async def test_any_change_of_users_makes_tokens_old_and_clients_fetch_new_ones(
    tmp_path: Path,
) -> None:
    options = ",".join(f"{key}={value}" for key, value in _files(tmp_path, "ES256").items())
    async with memory_etcd(auth_token=f"jwt,{options}", bcrypt_cost=4) as server:
        await populate(server.endpoint)
        async with (
            caller(server.endpoint, ROOT) as root,
            EtcdClient([server.endpoint], access=ALICE) as alice,
        ):
            await alice.put(b"w1", b"x")
            token = (await root("Auth/Authenticate", name="alice", password=ALICE.password)).token
            await root("Auth/RoleAdd", name="new")
            async with (
                aiohttp.ClientSession(f"http://{server.endpoint}") as session,
                session.post(
                    "/v3/kv/range", json={"key": "cg=="}, headers={"Authorization": token}
                ) as response,
            ):
                assert (await response.json())["error"] == errors.AUTH_OLD_REVISION[1]
            await alice.put(b"w1", b"y")
            async with alice.watch(b"r"):
                await root("Auth/RoleAdd", name="newer")
                await alice.watch(b"r1").__aenter__()
