"""Addresses and networks as Calico's Go code reads them."""

from __future__ import annotations

import pytest

from agents.calico.net import Cidr, Ip
from emulator.errors import UsageError


@pytest.mark.parametrize(
    ("text", "version", "printed"),
    [
        ("10.1.2.3", 4, "10.1.2.3"),
        ("::ffff:10.1.2.3", 4, "10.1.2.3"),
        ("::FFFF:0a01:0203", 4, "10.1.2.3"),
        ("FD00::0:1", 6, "fd00::1"),
    ],
)
def test_addresses_are_read_and_printed_in_their_shortest_form(
    text: str, version: int, printed: str
) -> None:
    ip = Ip.parse(text)
    assert (ip.version, str(ip)) == (version, printed)


@pytest.mark.parametrize("text", ["", "10.1.2", "10.1.2.03", "fe80::1%eth0", "10.1.2.3/32", "1"])
def test_what_go_does_not_take_for_an_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid IP address: "):
        Ip.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.0/255.255.0.0",
        "10.0.0.0/0.0.255.255",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/-1",
        "fe80::1%eth0/64",
        "fd00::/129",
    ],
)
def test_what_go_does_not_take_for_a_network_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid CIDR address: "):
        Cidr.parse(text)


@pytest.mark.parametrize(
    ("text", "printed"),
    [("10.1.2.3/16", "10.1.0.0/16"), ("10.1.2.3", "10.1.2.3/32"), ("fd00::1", "fd00::1/128")],
)
def test_host_bits_are_cut_and_an_address_is_a_network_of_its_own(text: str, printed: str) -> None:
    assert str(Cidr.parse(text)) == printed
