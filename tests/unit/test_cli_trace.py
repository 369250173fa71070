"""Where podwire trace sends its probe, and what it says of places it cannot send one to."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from emulator.cli.trace import Target, _run, _target
from emulator.errors import UsageError
from emulator.kubeclient.errors import ApiError

NODES = {"nodes": [{"name": "node-0", "ip": "172.17.4.101"}]}
SPECS: dict[str, dict[str, Any]] = {
    "web": {"clusterIP": "10.3.0.9"},
    "headless": {"clusterIP": "None"},
    "elsewhere": {"type": "ExternalName", "externalName": "example.org"},
}


class Api:
    """A pod with an address, one without, and some services."""

    async def get(self, resource: Any, namespace: str, name: str) -> dict[str, Any]:
        if resource.plural == "pods" and name in ("pod", "early"):
            return {"status": {"podIP": "10.2.1.2"} if name == "pod" else {}, "spec": {}}
        if resource.plural == "services" and name in SPECS:
            return {"spec": SPECS[name]}
        raise ApiError(404, "NotFound", "not found")


def arguments(target: str, *, udp: bool = False) -> argparse.Namespace:
    return argparse.Namespace(target=target, namespace="default", udp=udp, timeout=1.0)


async def target(text: str, *, udp: bool = False) -> Target:
    return await _target(Api(), NODES, arguments(text, udp=udp))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "ip", "port"),
    [
        ("8.8.8.8", "8.8.8.8", 0),
        ("node-0:22", "172.17.4.101", 22),
        ("pod:80", "10.2.1.2", 80),
        ("web:65535", "10.3.0.9", 65535),
    ],
)
async def test_places_have_addresses(text: str, ip: str, port: int) -> None:
    assert await target(text) == Target(text, ip, port)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("headless:80", "service 'headless' has no address of its own; name one of its pods"),
        ("elsewhere:80", "service 'elsewhere' has no address of its own"),
        ("early", "pod 'early' has no address yet"),
        ("nobody", "is no address, node, pod or service in 'default'"),
        ("pod:\N{SUPERSCRIPT TWO}", "is not a port"),
        ("pod:0", "is not a port"),
        ("pod:" + "9" * 5000, "is not a port"),
        ("pod:", "is not a port"),
    ],
)
async def test_what_has_none_is_told(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        await target(text)


async def test_a_udp_probe_needs_a_port() -> None:
    with pytest.raises(UsageError, match="a UDP probe needs a port: pod:PORT"):
        await target("pod", udp=True)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_time_to_wait_has_an_end(timeout_s: float) -> None:
    with pytest.raises(UsageError, match="is not a time to wait"):
        await _run(argparse.Namespace(timeout=timeout_s))
