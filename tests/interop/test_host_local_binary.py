"""Debian's host-local binary and our IPAM share one directory, both ways."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agents.cni.errors import CniError
from agents.cni.hostlocal import HostLocal
from emulator.addr import format_ip

BINARY = Path("/usr/lib/cni/host-local")

pytestmark = pytest.mark.skipif(
    not BINARY.exists(),
    reason="no host-local binary (Debian: apt install containernetworking-plugins)",
)


def run(command: str, container: str, directory: Path, subnet: str) -> dict[str, Any]:
    conf = {
        "cniVersion": "0.3.1",
        "name": "podnet",
        "ipam": {"type": "host-local", "subnet": subnet, "dataDir": str(directory)},
    }
    environment = os.environ | {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/usr/lib/cni",
    }
    done = subprocess.run(
        [BINARY], input=json.dumps(conf).encode(), env=environment, capture_output=True, check=False
    )
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return answer


def address(answer: dict[str, Any]) -> str:
    text: str = answer["ips"][0]["address"]
    return text.partition("/")[0]


def test_both_give_addresses_out_of_one_pool_in_one_order(tmp_path: Path) -> None:
    conf, ours = {"subnet": "10.2.59.0/28"}, HostLocal(tmp_path, "podnet")
    given = []
    for number in range(13):
        if number % 2:
            given.append(address(run("ADD", f"c{number}", tmp_path, conf["subnet"])))
        else:
            given.append(format_ip(ours.add(conf, f"c{number}", "eth0").ip))
    assert given == [f"10.2.59.{last}" for last in range(2, 15)]
    full = run("ADD", "one-more", tmp_path, conf["subnet"])
    with pytest.raises(CniError) as error:
        ours.add(conf, "one-more", "eth0")
    assert full["msg"] == str(error.value)


def test_each_frees_and_knows_what_the_other_reserved(tmp_path: Path) -> None:
    conf, ours = {"subnet": "10.2.59.0/28"}, HostLocal(tmp_path, "podnet")
    theirs = address(run("ADD", "real", tmp_path, conf["subnet"]))
    mine = format_ip(ours.add(conf, "mine", "eth0").ip)
    assert [format_ip(ip) for ip in ours.delete("real", "eth0")] == [theirs]
    assert not (tmp_path / "podnet" / theirs).exists()
    duplicate = run("ADD", "mine", tmp_path, conf["subnet"])
    with pytest.raises(CniError) as error:
        ours.add(conf, "mine", "eth0")
    assert (duplicate["code"], duplicate["msg"]) == (999, str(error.value))
    run("DEL", "mine", tmp_path, conf["subnet"])
    assert not (tmp_path / "podnet" / mine).exists()
    assert ours.find("mine", "eth0") is None
