"""Service addresses and node ports: bands, exhaustion, reservations that are undone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agents.apiserver.allocators import ip_band, ip_pool, port_band, port_pool
from agents.apiserver.services import ServiceAddresses
from emulator.addr import format_ip, parse_ip
from emulator.apimachinery.status import StatusError
from emulator.errors import ExhaustedError


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec}


def node_port(name: str, *ports: dict[str, Any]) -> dict[str, Any]:
    return service(name, type="NodePort", ports=list(ports))


@pytest.mark.parametrize(("size", "band"), [(16, 0), (256, 16), (1 << 20, 256)])
def test_address_band(size: int, band: int) -> None:
    assert ip_band(size) == band


def test_port_band_of_the_default_range_is_86() -> None:
    assert port_band(2768) == 86


def test_dynamic_choice_avoids_the_lower_band_until_it_must() -> None:
    pool = port_pool(30000, 30127, random.Random(1))
    upper = [pool.allocate("x") for _ in range(112)]
    assert min(upper) == 30016
    lower = [pool.allocate("x") for _ in range(16)]
    assert sorted(lower) == list(range(30000, 30016))
    with pytest.raises(ExhaustedError):
        pool.allocate("x")


def test_a_range_leaves_out_its_network_and_broadcast_address() -> None:
    pool = ip_pool("10.3.0.0/29", random.Random(1))
    assert parse_ip("10.3.0.0") not in pool
    assert parse_ip("10.3.0.7") not in pool
    taken = {format_ip(pool.allocate("x")) for _ in range(6)}
    assert taken == {f"10.3.0.{i}" for i in range(1, 7)}


@pytest.fixture
def addresses() -> ServiceAddresses:
    return ServiceAddresses("10.3.0.0/24", (30000, 30003), random.Random(1))


def test_what_a_failed_write_took_is_free_again(addresses: ServiceAddresses) -> None:
    wanted = node_port("a", {"port": 80, "nodePort": 30001})
    addresses.reserve(wanted, None).undo()
    addresses.reserve(node_port("b", {"port": 80, "nodePort": 30001}), None).keep()


def test_a_refused_service_leaves_nothing_reserved(addresses: ServiceAddresses) -> None:
    with pytest.raises(StatusError, match="not in the valid range"):
        addresses.reserve(
            node_port("a", {"port": 80, "nodePort": 30000}, {"port": 81, "nodePort": 9}), None
        )
    addresses.reserve(node_port("b", {"port": 80, "nodePort": 30000}), None).keep()


def test_one_port_number_may_serve_two_protocols(addresses: ServiceAddresses) -> None:
    dns = node_port("a", {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"})
    addresses.reserve(dns, None).keep()
    first, second = dns["spec"]["ports"]
    assert first["nodePort"] == second["nodePort"]


def test_changing_the_type_gives_ports_and_address_back(addresses: ServiceAddresses) -> None:
    old = node_port("a", {"port": 80, "nodePort": 30002})
    addresses.reserve(old, None).keep()
    address = old["spec"]["clusterIP"]
    new = service("a", type="ExternalName", externalName="x", ports=[])
    addresses.reserve(new, old).keep()
    again = node_port("b", {"port": 80, "nodePort": 30002})
    again["spec"]["clusterIP"] = address
    addresses.reserve(again, None).keep()
    addresses.release(again)
    addresses.reserve(node_port("c", {"port": 80, "nodePort": 30002}), None).keep()


def test_a_full_range_is_an_internal_error(addresses: ServiceAddresses) -> None:
    for i in range(4):
        addresses.reserve(node_port(f"s{i}", {"port": 80}), None).keep()
    with pytest.raises(StatusError, match="failed to allocate a nodePort: range is full"):
        addresses.reserve(node_port("x", {"port": 80}), None)


def test_stored_services_are_adopted_and_clashes_reported(addresses: ServiceAddresses) -> None:
    ports = [{"port": 80, "nodePort": 30001}]
    a = service("a", type="NodePort", clusterIP="10.3.0.9", ports=ports)
    b = service("b", type="NodePort", clusterIP="10.9.0.1", ports=ports)
    assert addresses.adopt([a, b]) == [
        "service default/b: 10.9.0.1 is out of range or taken",
        "service default/b: node port 30001 is out of range or taken",
    ]
    with pytest.raises(StatusError, match="provided IP is already allocated"):
        addresses.reserve(service("c", clusterIP="10.3.0.9"), None)


def test_a_headless_service_takes_no_address(addresses: ServiceAddresses) -> None:
    headless = service("a", clusterIP="None", ports=[])
    addresses.reserve(headless, None).keep()
    assert headless["spec"]["clusterIPs"] == ["None"]
