"""calicoctl: its tables to the blank, its verbs against a datastore in memory."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agents.calico.client import ResourceClient
from agents.calico.ctl.commands import Console
from agents.calico.ctl.main import Environment, run_calicoctl
from agents.calico.ctl.node_status import peers_of, render
from agents.calico.ctl.tables import box, columns, wrap
from agents.calico.resources import new_resource
from agents.calico.testing import MemoryDatastore
from emulator.errors import PodwireError
from emulator.runtime.clock import real_clock

if TYPE_CHECKING:
    from agents.calico.resources import Resource

POOL = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: extra}
spec: {cidr: 10.9.0.0/16, natOutgoing: true, ipipMode: CrossSubnet}
"""
MESH = [
    "2002-name     proto    table    state  since       info",
    "1002-static1  Static   master   up     14:40:01    ",
    " Mesh_10_10_95_205 BGP      master   up     14:40:03    Established   ",
]


class Terminal:
    """A datastore and what calicoctl wrote."""

    def __init__(self, bird: list[str] | None = None) -> None:
        self.datastore = MemoryDatastore()
        self.files: dict[str, str] = {}
        self.out = ""
        self.err = ""
        self.bird = bird
        self.client = ResourceClient(self.datastore, real_clock(), random.Random(1))

    async def run(self, *argv: str) -> int:
        self.out = self.err = ""
        console = Console(self._out, self._err, self.files.__getitem__, self.files.__setitem__)
        env = Environment(self.datastore, real_clock(), random.Random(2), console, self._bird)
        return await run_calicoctl(argv, env)

    async def ok(self, *argv: str) -> str:
        assert await self.run(*argv) == 0, self.err
        return self.out

    async def fails(self, *argv: str) -> str:
        assert await self.run(*argv) == 1, self.out
        return self.err

    def _out(self, text: str) -> None:
        self.out += text

    def _err(self, text: str) -> None:
        self.err += text

    async def _bird(self, line: str) -> list[str]:
        if self.bird is None:
            raise ConnectionRefusedError
        return self.bird


def node(name: str, ip: str) -> Resource:
    return new_resource("Node", name, {"bgp": {"ipv4Address": ip}})


async def test_nodes_are_listed_as_the_original_lists_them() -> None:
    terminal = Terminal()
    await terminal.client.create(node("kube-0", "10.10.68.222/20"))
    await terminal.client.create(node("kube-1", "10.10.95.205/20"))
    assert await terminal.ok("get", "nodes") == "NAME     \nkube-0   \nkube-1   \n\n"
    assert await terminal.ok("get", "node", "-o", "wide") == (
        "NAME     ASN         IPV4              IPV6   \n"
        "kube-0   (unknown)   10.10.68.222/20          \n"
        "kube-1   (unknown)   10.10.95.205/20          \n\n"
    )
    await terminal.client.create(new_resource("BGPConfiguration", "default", {"asNumber": 64512}))
    assert "kube-0   (64512)   10.10.68.222/20" in await terminal.ok("get", "no", "-o", "wide")
    assert await terminal.ok("get", "nodes", "kube-1", "-o", "name") == "Node/kube-1\n"


async def test_a_resource_is_applied_shown_changed_and_deleted() -> None:
    terminal = Terminal()
    terminal.files["pool.yaml"] = POOL
    done = await terminal.ok("create", "-f", "pool.yaml")
    assert done == "Successfully created 1 'IPPool' resource(s)\n"
    assert await terminal.fails("create", "-f", "pool.yaml") == (
        "Failed to create 'IPPool' resource: [resource already exists: IPPool(extra)]\n"
    )
    assert "Successfully applied 1 'IPPool'" in await terminal.ok("apply", "-f", "pool.yaml")
    assert await terminal.ok("get", "ippool", "-o", "wide") == (
        "NAME    CIDR          NAT    IPIPMODE      VXLANMODE   DISABLED   DISABLEBGPEXPORT   "
        "SELECTOR   \n"
        "extra   10.9.0.0/16   true   CrossSubnet   Never       false      false              "
        "all()      \n\n"
    )
    shown = yaml.safe_load(await terminal.ok("get", "ippool", "extra", "-o", "yaml"))
    assert shown["spec"]["blockSize"] == 26
    assert shown["metadata"]["resourceVersion"]
    patch = '{"spec":{"disabled":true}}'
    assert "patched 1" in await terminal.ok("patch", "ippool", "extra", "-p", patch)
    listed = yaml.safe_load(await terminal.ok("get", "ippools", "-o", "yaml"))
    assert (listed["kind"], listed["items"][0]["spec"]["disabled"]) == ("IPPoolList", True)
    assert "deleted 1" in await terminal.ok("delete", "ippool", "extra")
    assert "does not exist: IPPool(extra)" in await terminal.fails("delete", "ippool", "extra")
    await terminal.ok("delete", "ippool", "extra", "--skip-not-exists")


async def test_what_get_exports_can_be_applied_elsewhere() -> None:
    terminal, other = Terminal(), Terminal()
    terminal.files["pool.yaml"] = POOL
    await terminal.ok("apply", "-f", "pool.yaml")
    other.files["-"] = await terminal.ok("get", "ippool", "extra", "-o", "yaml", "--export")
    assert "uid" not in other.files["-"]
    await other.ok("create", "-f", "-")
    assert await other.ok("get", "ippools") == await terminal.ok("get", "ippools")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (("get", "cow"), "resource type 'cow' is not supported"),
        (("get", "ippool", "none"), "resource does not exist: IPPool(none)"),
        (("get", "ippool", "-n", "default"), "IPPool is not namespaced"),
        (("get", "wep", "-n", "a", "-A"), "cannot use both --namespace and --all-namespaces"),
        (("get", "ippool", "-o", "custom-columns=COLOUR"), "IPPool has no column COLOUR"),
        (("apply", "-f", "empty"), "No resources specified in file empty"),
        (("apply", "-f", "text"), "document 1: expected a resource, found str"),
        (("apply", "-f", "broken"), "yaml: "),
        (("apply", "-f", "pod"), "document 1: unknown resource type {Pod v1}"),
        (("apply",), "apply: no resources specified; give a file with --filename"),
        (("label", "node", "x", "a"), "give KEY=VALUE to set a label"),
        (("patch", "node", "x", "-p", "{"), "--patch: not JSON"),
        (("fly",), "invalid choice: 'fly'"),
    ],
)
async def test_what_cannot_be_done_is_said_in_a_line(argv: tuple[str, ...], error: str) -> None:
    terminal = Terminal()
    terminal.files |= {
        "empty": "",
        "text": "hello",
        "broken": "{",
        "pod": "{kind: Pod, apiVersion: v1, metadata: {name: a}}",
    }
    assert error in await terminal.fails(*argv)


async def test_node_status_shows_bird_s_peers() -> None:
    assert await Terminal(MESH).ok("node", "status") == (
        "Calico process is running.\n"
        "\n"
        "IPv4 BGP status\n"
        "+--------------+-------------------+-------+----------+-------------+\n"
        "| PEER ADDRESS |     PEER TYPE     | STATE |  SINCE   |    INFO     |\n"
        "+--------------+-------------------+-------+----------+-------------+\n"
        "| 10.10.95.205 | node-to-node mesh | up    | 14:40:03 | Established |\n"
        "+--------------+-------------------+-------+----------+-------------+\n"
        "\n"
        "IPv6 BGP status\n"
        "No IPv6 peers found.\n"
        "\n"
    )


async def test_node_status_without_bird_says_so() -> None:
    assert "INFO: BIRDv4 process: 'bird' is not running.\n" in await Terminal().ok("node", "status")


def test_a_long_reason_is_broken_between_words() -> None:
    row = " Mesh_10_10_95_205 BGP      master   start  14:40:03    Active        Socket: "
    (peer,) = peers_of([MESH[0], row + "Connection refused"])
    assert peer[-1] == "Active Socket: Connection refused"
    lines = render([peer]).splitlines()
    assert lines[6:8] == [
        "| 10.10.95.205 | node-to-node mesh | start | 14:40:03 | Active Socket: Connection |",
        "|              |                   |       |          | refused                   |",
    ]


def test_the_other_dialect_is_refused() -> None:
    with pytest.raises(PodwireError, match="unknown BIRD table output format"):
        peers_of(["2002-Name       Proto      Table      State  Since         Info"])


def test_numbers_stand_right_in_a_box() -> None:
    assert box(["A", "IPs total"], [["x", "64"], ["y", "65536"]]).splitlines()[3:5] == [
        "| x |        64 |",
        "| y |     65536 |",
    ]


def test_headings_alone_are_a_table() -> None:
    assert columns(["NAME", "CIDR"], []) == "NAME   CIDR   \n"
    assert box(["A"], []) == "+---+\n| A |\n+---+\n+---+\n"


@given(st.lists(st.text("abc", min_size=1, max_size=12), max_size=12))
def test_wrapping_keeps_every_word_and_the_width(words: list[str]) -> None:
    lines = wrap(" ".join(words))
    assert " ".join(lines).split() == words
    assert all(len(line) <= 30 for line in lines)
