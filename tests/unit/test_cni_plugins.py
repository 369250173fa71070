"""subnet.env, the flannel plugin's rendering, configuration files, results: pure parts of CNI."""

from __future__ import annotations

import json

import pytest

from agents.cni.conf import default_conf, parse_conf
from agents.cni.delegate import render_delegate
from agents.cni.errors import CniError
from agents.cni.result import AddressConf, CniResult, Interface, RouteConf
from agents.cni.subnetenv import missing_file, parse_subnet_env
from emulator.addr import Prefix, parse_ip

SUBNET_ENV = (
    "FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.59.1/24\n"
    "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)


def test_subnet_env_of_the_tutorial_is_read() -> None:
    env = parse_subnet_env(SUBNET_ENV)
    assert (str(env.network), str(env.subnet), env.mtu, env.ip_masq) == (
        "10.2.0.0/16",
        "10.2.59.0/24",
        1450,
        True,
    )


def test_every_missing_variable_is_named() -> None:
    with pytest.raises(CniError) as error:
        parse_subnet_env("FLANNEL_MTU=1450\n")
    assert str(error.value) == (
        "/run/flannel/subnet.env is missing FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_IPMASQ"
    )


@pytest.mark.parametrize("line", ["FLANNEL_MTU=big", "FLANNEL_SUBNET=10.2.59.1/33"])
def test_a_value_that_does_not_parse_names_the_file(line: str) -> None:
    with pytest.raises(CniError, match=r"^/run/flannel/subnet\.env: "):
        parse_subnet_env(SUBNET_ENV + line + "\n")


def test_an_absent_file_speaks_the_text_of_its_era() -> None:
    path = "/run/flannel/subnet.env"
    assert str(missing_file(path, "2017")) == f"open {path}: no such file or directory"
    assert str(missing_file(path, "modern")) == (
        f"failed to load flannel 'subnet.env' file: open {path}: no such file or directory. "
        "Check the flannel pod log for this node."
    )


def test_the_seed_configuration_renders_the_seed_bridge() -> None:
    conf = parse_conf(default_conf("2017")[1], "10-flannel.conf").plugins[0]
    assert render_delegate({**conf, "cniVersion": ""}, parse_subnet_env(SUBNET_ENV), "2017") == {
        "ipMasq": False,
        "ipam": {
            "routes": [{"dst": "10.2.0.0/16"}],
            "subnet": "10.2.59.0/24",
            "type": "host-local",
        },
        "isDefaultGateway": True,
        "isGateway": True,
        "mtu": 1450,
        "name": "podnet",
        "type": "bridge",
    }


def test_the_modern_configuration_renders_ranges_and_hairpin() -> None:
    conf = parse_conf(default_conf("modern")[1], "10-flannel.conflist")
    assert [plugin["type"] for plugin in conf.plugins] == ["flannel", "portmap"]
    delegate = render_delegate(conf.plugins[0], parse_subnet_env(SUBNET_ENV), "modern")
    assert delegate["ipam"] == {
        "type": "host-local",
        "ranges": [[{"subnet": "10.2.59.0/24"}]],
        "routes": [{"dst": "10.2.0.0/16"}],
    }
    assert delegate["hairpinMode"] is True
    assert delegate["cniVersion"] == "0.3.1"


@pytest.mark.parametrize("field", ["name", "ipam"])
def test_a_delegate_may_not_bring_what_flannel_sets(field: str) -> None:
    with pytest.raises(CniError, match=f"must not have '{field}' field"):
        render_delegate({"delegate": {field: "x"}}, parse_subnet_env(SUBNET_ENV), "modern")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "error parsing configuration f.conf"),
        ("[]", "no 'name'"),
        ('{"name":"a"}', "missing 'type'"),
        ('{"name":"a","plugins":[]}', "no plugins"),
    ],
)
def test_a_broken_configuration_names_its_file(text: str, says: str) -> None:
    with pytest.raises(CniError, match=says):
        parse_conf(text, "f.conf")


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "1.0.0"])
def test_a_result_survives_its_json_in_every_version(version: str) -> None:
    result = CniResult(
        ()
        if version == "0.2.0"
        else (Interface("cni0", "0a:58:0a:02:3b:01"), Interface("eth0", "0a:58:0a:02:3b:0d", "/n")),
        (AddressConf(parse_ip("10.2.59.13"), 24, parse_ip("10.2.59.1"), 0),),
        (RouteConf(Prefix(0, 0), parse_ip("10.2.59.1")), RouteConf(Prefix.parse("10.2.0.0/16"))),
    )
    document = json.loads(json.dumps(result.to_json(version)))
    assert CniResult.from_json(document) == result
    assert result.ip == "10.2.59.13"
