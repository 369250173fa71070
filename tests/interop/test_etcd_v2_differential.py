"""The same random v2 requests against a real etcd and ours must give the same answers.

A failure prints its seed; PODWIRE_SEED replays one, PODWIRE_V2_OPS changes the number of requests.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

import aiohttp
import pytest
from yarl import URL

from tests.etcd_servers import NO_REAL_ETCD, memory_etcd, real_etcd, real_etcd_binary

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(real_etcd_binary() is None, reason=NO_REAL_ETCD)

REQUESTS = int(os.environ.get("PODWIRE_V2_OPS", "1500"))
KEYS = ("/a", "/b", "/d/a", "/d/b", "/d/e/f", "/_h", "/d/_h/x", "/d", "/d/e", "", "/a/b", "/q")
VALUES = ("", "x", "yy", 'é<&>"\\\n\u2028', "7")
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TIMEOUT_S = 10.0
# An event of the past is there at once, one of the future never comes here.
WAIT_S = 0.5


class Request(NamedTuple):
    method: str
    target: str
    body: str = ""

    def __str__(self) -> str:
        return f"{self.method} {self.target} {self.body!r}"


class Answer(NamedTuple):
    status: int
    body: str
    headers: tuple[tuple[str, str], ...]


COMPARED = ("Content-Type", "X-Etcd-Index", "Allow", "Location", "X-Content-Type-Options")


def normal(body: str) -> str:
    """A body without the times that differ between two servers."""
    body = re.sub(r'"expiration":"[^"]*"', '"expiration":"T"', body)
    return re.sub(r'"ttl":\d+', '"ttl":N', body)


async def ask(session: aiohttp.ClientSession, endpoint: str, request: Request) -> Answer:
    async with session.request(
        request.method,
        URL(f"http://{endpoint}{request.target}", encoded=True),
        data=request.body.encode() or None,
        headers=FORM if request.body else None,
        allow_redirects=False,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    ) as response:
        headers = tuple((name, response.headers.get(name, "")) for name in COMPARED)
        try:
            async with asyncio.timeout(WAIT_S if "wait=true" in request.target else TIMEOUT_S):
                body = await response.text()
        except TimeoutError:
            body = "still waiting"
        return Answer(response.status, normal(body), headers)


class Generator:
    """Draws requests; knows roughly which index the store is at."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.index = 4

    def maybe(self, fields: dict[str, str], name: str, chance: float, *values: str) -> None:
        if self.rng.random() < chance:
            fields[name] = self.rng.choice(values)

    def number(self) -> str:
        rng = self.rng
        return (
            rng.choice(("0", "", "x", str(rng.randint(1, self.index + 1))))
            if (rng.random() < 0.2)
            else str(rng.randint(max(1, self.index - 12), self.index))
        )

    def next(self) -> Request:
        rng = self.rng
        path = "/v2/keys" + rng.choice(KEYS)
        method = rng.choices(("GET", "PUT", "POST", "DELETE", "HEAD"), (30, 45, 6, 16, 3))[0]
        fields: dict[str, str] = {}
        if method in ("GET", "HEAD"):
            # Unsorted children come in no order from a real etcd.
            fields["sorted"] = "true"
            self.maybe(fields, "recursive", 0.5, "true", "true", "false", "1", "nope")
            self.maybe(fields, "quorum", 0.3, "true", "false", "t")
            if rng.random() < 0.2:
                fields["wait"] = "true"
                fields["waitIndex"] = str(rng.randint(1, self.index))
                fields.setdefault("recursive", "true")
                path = "/v2/keys" if rng.random() < 0.95 else path
            return Request(method, f"{path}?{urlencode(fields)}")
        if method in ("PUT", "POST"):
            self.maybe(fields, "value", 0.8, *VALUES)
            self.maybe(fields, "dir", 0.2, "true", "true", "false")
            self.maybe(fields, "ttl", 0.2, "1000", "500", "", "soon")
            self.maybe(fields, "refresh", 0.1, "true", "false", "maybe")
            self.maybe(fields, "prevExist", 0.3, "true", "false", "no")
            self.maybe(fields, "noValueOnSuccess", 0.1, "true")
        else:
            self.maybe(fields, "recursive", 0.4, "true")
            self.maybe(fields, "dir", 0.4, "true")
        self.maybe(fields, "prevValue", 0.15, *VALUES)
        if rng.random() < 0.15:
            fields["prevIndex"] = self.number()
        self.maybe(fields, "wait", 0.01, "true")
        text = urlencode(fields)
        if method in ("PUT", "POST") and rng.random() < 0.7:
            return Request(method, path, text)
        return Request(method, f"{path}?{text}")


async def test_random_requests_answer_as_a_real_etcd(tmp_path: Path) -> None:
    seed = int(os.environ.get("PODWIRE_SEED") or random.randrange(2**32))
    print(f"replay with PODWIRE_SEED={seed}")
    generator = Generator(random.Random(seed))
    async with (
        real_etcd(tmp_path, "--enable-v2") as theirs,
        memory_etcd(enable_v2=True) as server,
        aiohttp.ClientSession() as session,
    ):
        for number in range(REQUESTS):
            request = generator.next()
            want, got = await asyncio.gather(
                ask(session, theirs, request), ask(session, server.endpoint, request)
            )
            assert got == want, f"request {number}: {request} (PODWIRE_SEED={seed})"
            generator.index = max(generator.index, int(dict(want.headers)["X-Etcd-Index"] or 0))
        stats = [
            await ask(session, at, Request("GET", "/v2/stats/store"))
            for at in (theirs, server.endpoint)
        ]
        assert stats[0].status == stats[1].status == 200


ODD_REQUESTS = (
    Request("GET", "/v2/keys"),
    Request("GET", "/v2/keys/"),
    Request("GET", "/v2/keys//a"),
    Request("PUT", "/v2/keys//a?value=1"),
    Request("GET", "/v2/keys/../machines"),
    Request("GET", "/v2/keys/%2e%2e/foo"),
    Request("PUT", "/v2/keys/a%20b%2Fc?value=1"),
    Request("GET", "/v2/keys/a%20b?recursive=true"),
    Request("PUT", "/v2/keys/%ff%fe?value=%ff"),
    Request("PUT", "/v2/keys/x", "value=%ff%zz"),
    Request("GET", "/v2/keys?a;b=1"),
    Request("GET", "/v2/keys?a=%z"),
    Request("GET", "/v2/keys?wait=maybe"),
    Request("PUT", "/v2/keys/x?ttl=-1"),
    Request("PUT", "/v2/keys/x?ttl=18446744073709551616"),
    Request("PUT", "/v2/keys/x?refresh=true&value=1"),
    Request("PUT", "/v2/keys/x?refresh=true"),
    Request("PUT", "/v2/keys/none?refresh=true&ttl=5"),
    Request("PUT", "/v2/keys/x?refresh=true&ttl=500"),
    Request("PUT", "/v2/keys/x?prevExist=true&refresh=true&ttl=500"),
    Request("GET", "/v2/keys?wait=true&recursive=true&waitIndex=4&quorum=true&sorted=true"),
    Request("PUT", "/v2/keys"),
    Request("PUT", "/v2/keys?prevExist=true"),
    Request("PUT", "/v2/keys?prevValue=x"),
    Request("DELETE", "/v2/keys?recursive=true"),
    Request("DELETE", "/v2/keys?prevIndex=3"),
    Request("POST", "/v2/keys", "value=first"),
    Request("POST", "/v2/keys?dir=true"),
    Request("PATCH", "/v2/keys/a"),
    Request("GET", "/v2/keysx"),
    Request("GET", "/v2/foo"),
    Request("GET", "/v2/stats"),
    Request("POST", "/v2/stats/self"),
    Request("GET", "/v2/stats/xyz"),
    Request("POST", "/v2/machines", "a=1"),
    Request("GET", "/v2/machines/x"),
    Request("GET", "/v2/members/none"),
    Request("DELETE", "/v2/members"),
    Request("DELETE", "/v2/members/abc"),
    Request("POST", "/v2/members", "a=1"),
    Request("PATCH", "/v2/members"),
    Request("OPTIONS", "/v2/keys/a"),
)


async def test_odd_requests_answer_as_a_real_etcd(tmp_path: Path) -> None:
    async with (
        real_etcd(tmp_path, "--enable-v2") as theirs,
        memory_etcd(enable_v2=True) as server,
        aiohttp.ClientSession() as session,
    ):
        for request in ODD_REQUESTS:
            want = await ask(session, theirs, request)
            got = await ask(session, server.endpoint, request)
            assert got == want, str(request)


def shape(body: str) -> str:
    """A document without ids, ports, times and counts."""
    body = re.sub(r"127\.0\.0\.1:\d+|localhost:\d+", "HOST", body)
    body = re.sub(r'"(id|leader)":"[0-9a-f]+"', r'"\1":"ID"', body)
    body = re.sub(r'"(startTime|uptime)":"[^"]+"', r'"\1":"T"', body)
    return re.sub(r":\d+", ":N", body)


async def test_members_machines_and_statistics_have_a_real_etcds_shape(tmp_path: Path) -> None:
    async with (
        real_etcd(tmp_path, "--enable-v2") as theirs,
        memory_etcd(enable_v2=True) as server,
        aiohttp.ClientSession() as session,
    ):
        for path in ("members", "members/leader", "machines", "stats/self", "stats/store",
                     "stats/leader", "auth/enable"):  # fmt: skip
            request = Request("GET", f"/v2/{path}")
            want = await ask(session, theirs, request)
            got = await ask(session, server.endpoint, request)
            assert shape(got.body) == shape(want.body), path
            assert got.headers == want.headers, path


async def test_without_the_flag_there_is_no_v2() -> None:
    async with memory_etcd() as server, aiohttp.ClientSession() as session:
        answer = await ask(session, server.endpoint, Request("GET", "/v2/keys"))
        assert (answer.status, answer.body) == (404, "404 page not found\n")
