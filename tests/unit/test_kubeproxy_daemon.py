"""kube-proxy behind a real HTTP API: events in, rules and node ports out."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

import pytest

from agents.kubeproxy.daemon import KubeProxyConfig, run_kubeproxy
from agents.kubeproxy.ruleset import NodeConfig, NodePort
from emulator.addr import Prefix
from emulator.errors import UsageError
from emulator.kubeclient.resource import ENDPOINTSLICES, SERVICES
from emulator.netstack.netfilter import Netfilter, run_iptables
from emulator.netstack.packet import AddressType
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from tests.kube_fakes import FakeApi
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Kernel:
    """A node's kernel with nothing but tables; its root namespace is itself."""

    def __init__(self) -> None:
        self.root = self
        self.sysctl: dict[str, int] = {}
        self.netfilter = Netfilter(self, clock=lambda: 0.0, rng=random.Random(1))

    def address_type(self, ip: int) -> AddressType:
        return AddressType.UNICAST

    def primary_address(self, dev: str, dst: int) -> int | None:
        return None

    def invalidate_flows(self) -> None:
        pass

    def nat(self) -> str:
        return run_iptables(self.netfilter, ["-t", "nat", "-S"]).stdout


class Proxy:
    """A running kube-proxy, what it was told and what it told."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.kernel = Kernel()
        self.opened: list[tuple[NodePort, ...]] = []
        self.ready = asyncio.Event()

    def config(self, **more: Any) -> KubeProxyConfig:
        node = NodeConfig("node-a", "192.168.0.2", Prefix.parse("10.2.0.0/16"))
        return KubeProxyConfig(self.api.config, node, self.opened.append, **more)

    async def run(self, **more: Any) -> None:
        log = logging.getLogger("test.kubeproxy")
        env = RoleEnv(real_clock(), random.Random(1), log, lambda _: self.ready.set())
        await run_kubeproxy(self.config(**more), env, self.kernel)


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with FakeApi() as api:
        yield Proxy(api)


def put_service(api: FakeApi, name: str, ip: str, protocol: str = "TCP", **port: int) -> None:
    api.put(SERVICES, {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": ip, "ports": [{"port": 80, "protocol": protocol, **port}]},
    })  # fmt: skip


def put_endpoints(api: FakeApi, name: str, *ips: str) -> None:
    labels = {"kubernetes.io/service-name": name}
    api.put(ENDPOINTSLICES, {
        "metadata": {"name": f"{name}-x", "namespace": "default", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip]} for ip in ips],
    })  # fmt: skip


async def test_services_and_endpoints_become_rules_and_open_ports(proxy: Proxy) -> None:
    put_service(proxy.api, "web", "10.3.0.10", nodePort=30080)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(proxy.run())
        await proxy.ready.wait()
        assert NodePort("tcp", 30080) not in sum(proxy.opened, ())
        assert "10.3.0.10" not in proxy.kernel.nat()
        put_endpoints(proxy.api, "web", "10.2.1.5")
        await until(lambda: "--to-destination 10.2.1.5:8080" in proxy.kernel.nat())
        await until(lambda: proxy.opened[-1:] == [(NodePort("tcp", 30080),)])
        put_endpoints(proxy.api, "web", "10.2.1.6")
        await until(lambda: "--to-destination 10.2.1.6:8080" in proxy.kernel.nat())
        assert "10.2.1.5" not in proxy.kernel.nat()
        proxy.api.remove(SERVICES, "default", "web")
        await until(lambda: proxy.opened[-1] == ())
        assert "10.2.1.6" not in proxy.kernel.nat()
        task.cancel()
    # Told when they change, whatever else does.
    assert proxy.opened == [(NodePort("tcp", 30080),), ()]


async def test_rules_that_were_refused_halfway_are_not_taken_for_those_before(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    restore = Netfilter.restore

    def refuse(self: Netfilter, text: str, **options: Any) -> None:
        restore(self, text, **options)
        if "--seconds 200 " in text:
            raise UsageError("iptables-restore: line 3 failed")

    def put(seconds: int) -> None:
        affinity = {"clientIP": {"timeoutSeconds": seconds}}
        spec = {"clusterIP": "10.3.0.10", "ports": [{"port": 80, "protocol": "TCP"}]}
        spec |= {"sessionAffinity": "ClientIP", "sessionAffinityConfig": affinity}
        proxy.api.put(SERVICES, {"metadata": {"name": "web", "namespace": "default"}, "spec": spec})

    monkeypatch.setattr(Netfilter, "restore", refuse)
    put(100)
    put_endpoints(proxy.api, "web", "10.2.1.5")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(proxy.run())
        await proxy.ready.wait()
        assert "--seconds 100 " in proxy.kernel.nat()
        put(200)
        await until(lambda: "line 3 failed" in caplog.text)
        assert "--seconds 200 " in proxy.kernel.nat()
        put(100)
        await until(lambda: "--seconds 100 " in proxy.kernel.nat())
        task.cancel()


async def test_a_burst_of_changes_is_one_sync(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    restores = 0
    restore = Netfilter.restore

    def counted(self: Netfilter, text: str, **options: Any) -> None:
        nonlocal restores
        restores += 1
        restore(self, text, **options)

    monkeypatch.setattr(Netfilter, "restore", counted)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(proxy.run(min_sync_s=0.1))
        await proxy.ready.wait()
        for number in range(1, 101):
            put_service(proxy.api, f"s{number}", f"10.3.0.{number}")
            put_endpoints(proxy.api, f"s{number}", f"10.2.1.{number}")
        await until(lambda: "10.2.1.100:8080" in proxy.kernel.nat())
        task.cancel()
    assert restores < 20


async def test_an_sctp_service_is_left_out_and_said(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    put_service(proxy.api, "odd", "10.3.0.11", protocol="SCTP")
    put_service(proxy.api, "web", "10.3.0.10")
    put_endpoints(proxy.api, "web", "10.2.1.5")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(proxy.run())
        await proxy.ready.wait()
        assert "--to-destination 10.2.1.5:8080" in proxy.kernel.nat()
        task.cancel()
    assert "service port default/odd is left out" in caplog.text
