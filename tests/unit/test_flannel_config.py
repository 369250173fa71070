"""The network configuration: flannel's defaults, its checks and their texts."""

from __future__ import annotations

import json

import pytest

from agents.flannel.config import ConfigError, parse_network_config
from emulator.addr import format_ip


def shape(document: str, profile: str = "modern") -> tuple[str, str, int]:
    config = parse_network_config(document.encode(), "modern" if profile == "modern" else "2017")
    return format_ip(config.subnet_min), format_ip(config.subnet_max), config.subnet_len


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ('{ "network": "10.3.0.0/16" }', ("10.3.1.0", "10.3.255.0", 24)),
        (
            '{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0",'
            '"SubnetLen":28}',
            ("10.3.5.0", "10.3.8.0", 28),
        ),
        ('{"Network":"10.2.0.0/23"}', ("10.2.0.128", "10.2.1.128", 25)),
        ('{"Network":"10.2.0.0/28"}', ("10.2.0.4", "10.2.0.12", 30)),
        ('{"Network":"10.2.5.6/16","Unknown":1}', ("10.2.1.0", "10.2.255.0", 24)),
    ],
)
def test_defaults_of_today(document: str, expected: tuple[str, str, int]) -> None:
    assert shape(document) == expected


def test_2017_halves_a_small_network_and_checks_no_alignment() -> None:
    assert shape('{"Network":"10.2.0.0/24"}', "2017") == ("10.2.0.128", "10.2.0.128", 25)
    unaligned = '{"Network":"10.2.0.0/16","SubnetMin":"10.2.5.7"}'
    assert shape(unaligned, "2017")[0] == "10.2.5.7"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "please define a correct Network parameter in the flannel config"),
        ({"Network": "10.2.0.0/29"}, "network is too small. Minimum useful network prefix is /28"),
        ({"Network": "10.2.0.0/16", "SubnetLen": 31}, "SubnetLen must be less than /31"),
        (
            {"Network": "10.2.0.0/16", "SubnetLen": 17},
            "network must be able to accommodate at least four subnets",
        ),
        (
            {"Network": "10.2.0.0/16", "SubnetMin": "10.3.0.0"},
            "SubnetMin is not in the range of the Network",
        ),
        (
            {"Network": "10.2.0.0/16", "SubnetMax": "10.3.0.0"},
            "SubnetMax is not in the range of the Network",
        ),
        (
            {"Network": "10.2.0.0/16", "SubnetMin": "10.2.5.7"},
            "SubnetMin is not on a SubnetLen boundary: 10.2.5.7",
        ),
        ({"Network": "10.2.0.0"}, "invalid CIDR address: 10.2.0.0"),
        ({"Network": "10.2.0.0/16", "Backend": {"Type": "Foo"}}, "unknown backend type: foo"),
        ({"Network": "10.2.0.0/16", "Backend": {}}, "unknown backend type: "),
    ],
)
def test_wrong_configurations_are_refused_in_flannels_words(
    fields: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network_config(json.dumps(fields).encode())
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b'{"Network":5}', b"null", b"[" * 5000 + b"]" * 5000]
)
def test_garbage_is_a_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_network_config(data)


def test_backend_defaults() -> None:
    bare = parse_network_config(b'{"Network":"10.2.0.0/16"}').backend
    assert (bare.type, bare.vni, bare.vxlan_port) == ("udp", 1, 8472)
    given = parse_network_config(
        b'{"Network":"10.2.0.0/16","Backend":{"Type":"VXLAN","vni":7,"Port":4789}}'
    ).backend
    assert (given.type, given.device, given.vxlan_port) == ("vxlan", "flannel.7", 4789)
