"""Addresses and prefixes at the edge between text and integers."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.addr import Prefix, format_ip, format_mac, parse_ip, parse_mac
from emulator.errors import UsageError


@given(st.integers(0, 2**32 - 1))
def test_ip_text_round_trips_and_agrees_with_the_standard_library(value: int) -> None:
    assert format_ip(value) == str(ipaddress.IPv4Address(value))
    assert parse_ip(format_ip(value)) == value


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "a.b.c.d", "1.2.3.-4"]
)
def test_bad_ip_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="not an IPv4 address"):
        parse_ip(text)


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_prefix_agrees_with_the_standard_library(value: int, length: int) -> None:
    ours = Prefix.of(value, length)
    theirs = ipaddress.ip_network((value, length), strict=False)
    assert str(ours) == str(theirs)
    assert Prefix.parse(str(theirs)) == ours
    assert ours.broadcast == int(theirs.broadcast_address)
    assert value in ours


def test_prefix_with_host_bits_says_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"did you mean 10\.2\.0\.0/16"):
        Prefix.parse("10.2.3.4/16")


def test_mac_text_round_trips() -> None:
    assert parse_mac("0a:58:0a:02:3b:0d") == bytes.fromhex("0a580a023b0d")
    assert format_mac(bytes.fromhex("0a580a023b0d")) == "0a:58:0a:02:3b:0d"
    with pytest.raises(UsageError, match="not a MAC address"):
        parse_mac("0a:58:0a:02:3b")
