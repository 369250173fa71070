"""Limits of the etcd server's HTTP/1.1 side: what it answers beyond them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import TYPE_CHECKING

from etcd.core import gojson
from tests.etcd_servers import memory_etcd

if TYPE_CHECKING:
    import pytest

TIMEOUT_S = 10.0


async def _http(endpoint: str, request: bytes) -> bytes:
    """Send bytes; return what came back until the server closed or answered."""
    host, _, port = endpoint.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(TIMEOUT_S):
            return await reader.read(65_536)
    finally:
        writer.close()


async def test_a_header_beyond_8_kib_is_a_bad_request() -> None:
    async with memory_etcd(enable_v2=True) as etcd:
        line = b"GET /version HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n"
        assert b" 400 " in (await _http(etcd.endpoint, line)).split(b"\r\n")[0]
        path = b"GET /v2/keys/" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        assert b" 400 " in (await _http(etcd.endpoint, path)).split(b"\r\n")[0]
        good = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
        assert b" 200 " in (await _http(etcd.endpoint, good)).split(b"\r\n")[0]


async def test_a_v2_form_beyond_10_mib_is_refused_as_go_refuses_it() -> None:
    async with memory_etcd(enable_v2=True) as etcd:
        size = 10 * 1024 * 1024 + 1
        head = (
            b"PUT /v2/keys/a HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n" % size
        )
        answer = await _http(etcd.endpoint, head + b"value=" + b"a" * (size - 6))
        assert b'"errorCode":210' in answer
        assert b'"cause":"http: POST too large"' in answer


async def test_the_gateways_messages_have_the_limit_of_grpcs() -> None:
    for size, limit in ((700_000, 100_000), (3_000_000, 1536 * 1024)):
        value = base64.b64encode(bytes(size)).decode()
        body = json.dumps({"key": "YQ==", "value": value}).encode()
        head = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        async with memory_etcd(max_request_bytes=limit) as etcd:
            answer = await _http(etcd.endpoint, head + body)
        assert b" 429 " in answer.partition(b"\r\n")[0]
        assert f"vs. {limit + 512 * 1024})".encode() in answer
    async with memory_etcd(max_request_bytes=4_000_000) as etcd:
        assert b" 200 " in (await _http(etcd.endpoint, head + body)).partition(b"\r\n")[0]


async def test_a_json_body_of_very_many_values_is_refused() -> None:
    body = b'{"compare":[' + b"0," * gojson.MAX_VALUES + b"0]}"
    head = b"POST /v3/kv/txn HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with memory_etcd() as etcd:
        answer = await _http(etcd.endpoint, head + body)
    assert b" 400 " in answer.partition(b"\r\n")[0]
    assert b"more than 100000 values" in answer


async def test_a_streams_json_that_comes_in_crumbs_is_looked_at_so_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each crumb costs a look at the whole message."""
    from etcd.server import gateway

    monkeypatch.setattr(gateway, "MAX_VALUES_LOOKED_AT", 1000)
    async with memory_etcd() as etcd:
        host, _, port = etcd.endpoint.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        begun = b'{"create_request":{"filters":[' + b"0," * 100
        writer.write(b"%x\r\n%b\r\n" % (len(begun), begun))
        answer = b""
        async with asyncio.timeout(TIMEOUT_S):
            while b"too many requests" not in answer:
                writer.write(b"1\r\n0\r\n1\r\n,\r\n")
                with contextlib.suppress(TimeoutError):
                    answer += await asyncio.wait_for(reader.read(65_536), 0.005)
        writer.close()
    assert b" 429 " in answer.partition(b"\r\n")[0]
