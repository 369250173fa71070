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
from agents.calico.ctl.ipam_text import merge_reports
from agents.calico.ctl.main import Environment, run_calicoctl
from agents.calico.ctl.node_status import peers_of, render
from agents.calico.ctl.tables import box, columns, wrap
from agents.calico.ipam.ipam import Ipam
from agents.calico.ipam.model import handle_key
from agents.calico.known_fields import unknown_fields
from agents.calico.net import Cidr, Ip
from agents.calico.resources import key_of_resource, new_resource
from emulator.errors import PodwireError
from emulator.runtime.clock import real_clock
from tests.calico_memory import MemoryDatastore

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
        (("get", "cow"), "Failed to get resources: resource type 'cow' is not supported"),
        (("delete", "cow", "x"), "resource type 'cow' is not supported"),
        (("get", "ippool", "-o", "sideways"), "unrecognized output format 'sideways'"),
        (("get", "ippool", "-o", "custom-columns"), "unrecognized output format 'custom-columns'"),
        (("get", "ippool", "-o", "custom-columns="), "need to specify at least one column"),
        (("get", "ippool", "-o", "go-template={{.}}"), "needs Go's templates; take json or yaml"),
        (("get", "wep", "x", "-A"), "cannot use --all-namespace flag for getting a single"),
        (
            ("get", "pool", "-o", "custom-columns=IP"),
            "Unknown heading IP, valid values are: NAME, ",
        ),
        (("get", "ippool", "none"), "resource does not exist: IPPool(none)"),
        (("get", "ippool", "-n", "default"), "IPPool is not namespaced"),
        (("get", "wep", "-n", "a", "-A"), "cannot use both --namespace and --all-namespaces"),
        (("apply", "-f", "empty"), "No resources specified in file empty"),
        (("apply", "-f", "text"), "document 1: expected a resource, found str"),
        (("apply", "-f", "broken"), "yaml: "),
        (("apply", "-f", "pod"), "Failed to execute command: document 1: Unknown resource"),
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


# -- ipam ------------------------------------------------------------------------------------------


async def with_addresses() -> Terminal:
    """A pool, two nodes: kube-0 has a tunnel address and a leaked one, kube-1 borrowed one."""
    terminal = Terminal()
    await terminal.client.create(
        new_resource("IPPool", "default-ipv4-ippool", {"cidr": "192.168.0.0/24", "blockSize": 30})
    )
    await terminal.client.create(
        new_resource(
            "ClusterInformation", "default", {"clusterGUID": "abc", "datastoreReady": True}
        )
    )
    await terminal.client.create(node("kube-1", "10.10.95.205/20"))
    ipam = Ipam(terminal.datastore, real_clock())
    tunnel = Ip.parse("192.168.0.0")
    await ipam.claim_affinity(Cidr.parse("192.168.0.0/30"), "kube-0")
    secondary = {"node": "kube-0", "type": "ipipTunnelAddress"}
    await ipam.assign_ip("kube-0", tunnel, "ipip-tunnel-addr-kube-0", secondary)
    await ipam.assign_ip(
        "kube-1",
        Ip.parse("192.168.0.1"),
        "k8s-pod-network.1",
        {"node": "kube-1", "pod": "web", "namespace": "default"},
    )
    bgp = {"ipv4Address": "10.10.68.222/20", "ipv4IPIPTunnelAddr": "192.168.0.0"}
    await terminal.client.create(new_resource("Node", "kube-0", {"bgp": bgp}))
    return terminal


async def test_ipam_show_counts_pools_blocks_and_holders() -> None:
    terminal = await with_addresses()
    assert await terminal.ok("ipam", "show", "--show-blocks") == (
        "+----------+----------------+-----------+------------+-----------+\n"
        "| GROUPING |      CIDR      | IPS TOTAL | IPS IN USE | IPS FREE  |\n"
        "+----------+----------------+-----------+------------+-----------+\n"
        "| IP Pool  | 192.168.0.0/24 |       256 | 2 (1%)     | 254 (99%) |\n"
        "| Block    | 192.168.0.0/30 |         4 | 2 (50%)    | 2 (50%)   |\n"
        "+----------+----------------+-----------+------------+-----------+\n"
    )
    assert "Block" not in await terminal.ok("ipam", "show")
    assert await terminal.ok("ipam", "show", "--ip=192.168.0.1") == (
        "IP 192.168.0.1 is in use\nAttributes:\n  namespace: default\n  node: kube-1\n  pod: web\n"
    )
    assert await terminal.ok("ipam", "show", "--ip", "192.168.0.2") == (
        "192.168.0.2 is not assigned\n"
    )
    assert await terminal.ok("ipam", "show", "--ip", "10.0.0.1") == "10.0.0.1 is not assigned\n"
    assert "invalid IP address specified: x" in await terminal.fails("ipam", "show", "--ip", "x")


async def test_ipam_show_names_what_is_borrowed() -> None:
    terminal = await with_addresses()
    assert await terminal.ok("ipam", "show", "--show-borrowed") == (
        "+-------------+----------------+----------------+-------------+------+--------------+\n"
        "|     IP      | BORROWING-NODE |     BLOCK      | BLOCK OWNER | TYPE | ALLOCATED-TO |\n"
        "+-------------+----------------+----------------+-------------+------+--------------+\n"
        "| 192.168.0.1 | kube-1         | 192.168.0.0/30 | kube-0      | pod  | default/web  |\n"
        "+-------------+----------------+----------------+-------------+------+--------------+\n"
    )


async def test_ipam_settings_are_shown_and_changed() -> None:
    terminal = Terminal()
    done = await terminal.ok(
        "ipam", "configure", "--strictaffinity=true", "--max-blocks-per-host=4"
    )
    assert done == (
        "Successfully set StrictAffinity to: true\nSuccessfully set MaxBlocksPerHost to: 4\n"
    )
    shown = await terminal.ok("ipam", "show", "--show-configuration")
    assert "| StrictAffinity     | true  |\n" in shown
    assert "| MaxBlocksPerHost   |     4 |\n" in shown
    refused = await terminal.fails("ipam", "configure", "--strictaffinity=maybe")
    assert refused == "invalid value. Use true or false to set strictaffinity\n"
    refused = await terminal.fails("ipam", "configure", "--strictaffinity=false")
    assert refused == "error: MaxBlocksPerHost requires StrictAffinity to be enabled\n"
    refused = await terminal.fails("ipam", "configure", "--max-blocks-per-host=many")
    assert refused == "invalid value for maxblockhost. Use a valid number\n"
    assert "at least one" in await terminal.fails("ipam", "configure")


async def test_ipam_check_finds_a_leak_and_release_mends_it() -> None:
    terminal = await with_addresses()
    checked = await terminal.ok("ipam", "check", "--show-problem-ips", "-o", "report.json")
    leaked = "Main:k8s-pod-network.1 Extra:namespace=default,node=kube-1,pod=web"
    assert checked.splitlines() == [
        "Checking IPAM for inconsistencies...",
        "",
        "Loading all IPAM blocks...",
        "Found 1 IPAM blocks.",
        " IPAM block 192.168.0.0/30 affinity=host:kube-0:",
        "IPAM blocks record 2 allocations.",
        "",
        "Loading all IPAM pools...",
        "  192.168.0.0/24",
        "Found 1 active IP pools.",
        "",
        "Loading all nodes.",
        "Found 1 node tunnel IPs.",
        "",
        "Loading all workload endpoints.",
        "Found 0 workload IPs.",
        "Workloads and nodes are using 1 IPs.",
        "",
        "Loading all handles",
        "Looking for top (up to 20) nodes by allocations...",
        "  kube-0 has 1 allocations",
        "  kube-1 has 1 allocations",
        "Node with most allocations has 1; median is 1",
        "",
        "Scanning for IPs that are allocated but not actually in use...",
        f"  192.168.0.1 leaked; attrs {leaked}",
        "Found 1 IPs that are allocated in IPAM but not actually in use.",
        "Scanning for IPs that are in use by a workload or node but not allocated in IPAM...",
        "Found 0 in-use IPs that are not in active IP pools.",
        "Found 0 in-use IPs that are in active IP pools but have no corresponding IPAM allocation.",
        "",
        "Scanning for IPAM handles with no matching IPs...",
        "Found 0 handles with no matching IPs (and 2 handles with matches).",
        "Scanning for IPs with missing handle...",
        "Found 0 handles mentioned in blocks with no matching handle resource.",
        "Check complete; found 1 problems.",
    ]
    release = ("ipam", "release", "--from-report", "report.json")
    assert await terminal.fails(*release) == (
        "data store is not locked. Either lock the data store, or re-run with --force\n"
    )
    assert await terminal.ok(*release, "--force") == (
        "WARNING: Data store is not locked. Ignoring due to --force option\n"
        "Releasing 1 old IPs...\nReleased 1 IPs successfully\n"
        "Report didn't contain any handles to clean up.\nYou may now unlock the data store.\n"
    )
    assert (await terminal.ok("ipam", "check")).endswith("found 0 problems.\n")
    again = await terminal.ok(*release, "--force")
    assert "Problems are often caused by an out-of-date IPAM report." in again


async def test_ipam_release_deletes_handles_that_did_not_change() -> None:
    terminal = await with_addresses()
    for name in ("old", "busy"):
        terminal.datastore.put(handle_key(name), {"block": {"192.168.9.0/30": 1}, "id": name})
    await terminal.ok("ipam", "check", "-o", "report.json")
    terminal.datastore.put(handle_key("busy"), {"block": {"192.168.9.4/30": 1}, "id": "busy"})
    done = await terminal.ok("ipam", "release", "--from-report=report.json", "--force")
    assert "Deleting 2 handles...\nKey: '.' = Deleted OK; 'x' = skip" in done
    assert sorted("".join(done.splitlines()[-3])) == [".", "x"]
    assert "Released 1 handles; 1 skipped; 0 errors.\n" in done
    assert terminal.datastore.keys(handle_key("busy"))
    assert not terminal.datastore.keys(handle_key("old"))


async def test_ipam_release_of_one_address_and_of_bad_reports() -> None:
    terminal = await with_addresses()
    release = ("ipam", "release", "--ip", "192.168.0.1")
    assert await terminal.ok(*release) == "Successfully released IP address 192.168.0.1\n"
    assert await terminal.fails(*release) == "IP address 192.168.0.1 is not assigned\n"
    assert "give --ip or --from-report" in await terminal.fails("ipam", "release")
    terminal.files["bad.json"] = "{}"
    refused = await terminal.fails("ipam", "release", "--from-report", "bad.json")
    assert refused == "bad.json: not an IPAM report: it has no allocations\n"
    terminal.files["alien.json"] = '{"allocations": {}, "clusterGUID": "other"}'
    refused = await terminal.fails("ipam", "release", "--from-report", "alien.json")
    assert "mismatched cluster GUID. Refusing to release" in refused


async def test_reports_release_only_what_all_of_them_call_leaked() -> None:
    def report(*leaked: str) -> dict[str, object]:
        entries = {ip: [{"ip": ip, "inUse": False, "sequenceNumber": 1}] for ip in leaked}
        entries["10.0.0.9"] = [{"ip": "10.0.0.9", "inUse": True}]
        return {"allocations": entries}

    merged = merge_reports([report("10.0.0.1", "10.0.0.2"), report("10.0.0.2", "10.0.0.3")])
    assert list(merged.ips) == ["10.0.0.2"]
    assert merged.ips["10.0.0.2"].sequence_number == 1


# -- what is refused, and what is said of what nobody acts on -------------------------------------

V3 = "projectcalico.org/v3"


def document(kind: str, name: str, spec: object, **metadata: object) -> str:
    return yaml.safe_dump(
        {"apiVersion": V3, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}
    )


async def test_a_misspelt_field_is_refused_and_nothing_of_the_file_is_written() -> None:
    terminal = Terminal()
    good = document("IPPool", "good", {"cidr": "10.8.0.0/16"})
    bad = document("IPPool", "bad", {"cidr": "10.9.0.0/16", "ipipmode": "Always"})
    terminal.files["pools"] = f"{good}---\n{bad}"
    assert await terminal.fails("apply", "-f", "pools") == (
        'Failed to execute command: document 2: IPPool bad: unknown field "spec.ipipmode"\n'
    )
    rule = {"action": "Allow", "source": {"net": ["10.0.0.0/8"], "ports": [1]}, "to": {}}
    terminal.files["policy"] = document("GlobalNetworkPolicy", "p", {"ingress": [rule]})
    assert 'unknown fields "spec.ingress[0].source.net", "spec.ingress[0].to"' in (
        await terminal.fails("create", "-f", "policy")
    )
    assert await terminal.ok("get", "pools", "-o", "name") == ""
    await terminal.client.create(new_resource("IPPool", "p", {"cidr": "10.7.0.0/16"}))
    patch = ("patch", "ippool", "p", "-p", '{"spec":{"natoutgoing":true}}')
    assert 'unknown field "spec.natoutgoing"' in await terminal.fails(*patch)


async def test_what_calico_s_own_programs_write_has_only_known_fields() -> None:
    for kind, spec in (
        ("Node", {"bgp": {"ipv4Address": "10.0.0.1/24"}, "orchRefs": [{"nodeName": "a"}]}),
        ("FelixConfiguration", {"anythingAtAll": 1}),
        ("BGPPeer", {"peerIP": "10.0.0.1", "password": {"secretKeyRef": {"name": "s"}}}),
    ):
        assert unknown_fields(new_resource(kind, "x", spec)) == []


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"http": {"methods": ["GET"]}}, "http needs Calico's application layer policy"),
        ({"destination": {"services": {"name": "web"}}}, "destination.services is not emulated"),
    ],
)
async def test_rules_that_packets_cannot_tell_are_refused(rule: Resource, said: str) -> None:
    terminal = Terminal()
    spec = {"selector": "all()", "egress": [{"action": "Allow"}, {"action": "Allow", **rule}]}
    terminal.files["policy"] = document("GlobalNetworkPolicy", "p", spec)
    error = await terminal.fails("apply", "-f", "policy")
    assert "EgressRule = '2'" in error
    assert said in error
    assert await terminal.ok("get", "gnp", "-o", "name") == ""


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        ("HostEndpoint", {"node": "a", "interfaceName": "eth0"}, "host endpoints are not enforced"),
        ("Tier", {"order": 1}, "only the tier default is known"),
        ("GlobalNetworkPolicy", {"tier": "other"}, "only the tier default is known, not other"),
        (
            "GlobalNetworkPolicy",
            {"preDNAT": True, "applyOnForward": True},
            "preDNAT policies act on host endpoints, which are not enforced",
        ),
        (
            "GlobalNetworkPolicy",
            {"doNotTrack": True, "applyOnForward": True},
            "doNotTrack policies act on host endpoints, which are not enforced",
        ),
        ("GlobalNetworkPolicy", {"applyOnForward": True}, "its rules apply to workloads"),
    ],
)
async def test_what_nobody_acts_on_is_said_when_it_is_written(
    kind: str, spec: Resource, said: str
) -> None:
    terminal = Terminal()
    terminal.files["it"] = document(kind, "it", spec)
    assert (
        await terminal.ok("apply", "-f", "it") == f"Successfully applied 1 '{kind}' resource(s)\n"
    )
    assert terminal.err.startswith(f"WARNING: {kind} it: ")
    assert said in terminal.err


async def test_what_other_programs_keep_cannot_be_changed() -> None:
    terminal = Terminal()
    await terminal.client.create(new_resource("ClusterInformation", "default", {}))
    terminal.files["info"] = document("ClusterInformation", "default", {"clusterGUID": "x"})
    for argv in (
        ("apply", "-f", "info"),
        ("delete", "clusterinfo", "default"),
        ("patch", "clusterinfo", "default", "-p", '{"spec":{"clusterGUID":"x"}}'),
    ):
        assert "ClusterInformation(default): resource is readonly" in await terminal.fails(*argv)
    terminal.files["np"] = document("NetworkPolicy", "knp.default.web", {}, namespace="default")
    for argv in (("create", "-f", "np"), ("delete", "-f", "np"), ("replace", "-f", "np")):
        assert "must be managed through the kubernetes API" in await terminal.fails(*argv)


async def test_some_of_many_resources_fail() -> None:
    terminal = Terminal()
    pools = [document("IPPool", f"p{n}", {"cidr": f"10.{n}.0.0/16"}) for n in (1, 2)]
    terminal.files["pools"] = "---\n".join(
        (*pools, document("IPPool", "p3", {"cidr": "10.1.1.0/24"}))
    )
    assert (await terminal.fails("apply", "-f", "pools")).startswith(
        "Hit error(s): [error with field"
    )
    assert terminal.out == "Partial success: applied the first 2 out of 3 'IPPool' resources:\n"
    assert await terminal.fails("delete", "pool", "p1", "p3", "p2") == (
        "Failed to delete 'IPPool' resource: resource does not exist: IPPool(p3) with error: "
        "<nil>\n"
    )
    assert terminal.out == "Successfully deleted 2 'IPPool' resource(s)\n"
    assert await terminal.ok("delete", "pool", "p3", "--skip-not-exists")
    assert await terminal.fails("replace", "-f", "pools") == (
        "Failed to replace any 'IPPool' resources: resource does not exist: IPPool(p3) with error: "
        "<nil>\n"
    )
    assert await terminal.fails("patch", "pool", "p1", "-p", "{}") == (
        "Hit error: resource does not exist: IPPool(p1) with error: <nil>\n"
    )


async def test_labels_add_to_what_there_is_and_are_told_as_the_original_tells() -> None:
    terminal = Terminal()
    labels = {"a": "1"}
    await terminal.client.create(
        new_resource("Node", "n", {}, labels=labels, annotations={"kept": "yes"})
    )
    label = ("label", "nodes", "n")
    assert await terminal.ok(*label, "b=2") == "Successfully set label b on nodes n\n"
    assert await terminal.ok(*label, "b=2") == "Successfully updated label b on nodes n\n"
    assert "is already present. please use '--overwrite'" in await terminal.fails(*label, "b=3")
    assert await terminal.ok(*label, "b", "--remove") == (
        "Successfully removed label b from nodes n\n"
    )
    assert await terminal.fails(*label, "b", "--remove") == (
        "cannot remove label of nodes n, key b does not exist\n"
    )
    assert await terminal.fails("label", "nodes", "m", "b=1") == "nodes m not found\n"
    terminal.files["node"] = document("Node", "n", {}, labels={"c": "3"})
    for verb in ("apply", "replace"):
        await terminal.ok(verb, "-f", "node")
        metadata = (await terminal.client.get("Node", "n"))["metadata"]
        assert metadata["labels"] == {"a": "1", "c": "3"}
        assert metadata["annotations"] == {"kept": "yes"}


async def test_every_name_asked_for_is_a_table_of_its_own() -> None:
    terminal = Terminal()
    for name in ("a", "b"):
        await terminal.client.create(new_resource("Tier", name, {"order": 1000000}))
    assert await terminal.fails("get", "tiers", "b", "x", "a") == (
        "resource does not exist: Tier(x) with error: <nil>\n"
    )
    head = "NAME   ORDER   \n"
    assert terminal.out == f"{head}b      1e+06   \n\n{head}a      1e+06   \n\n"


@pytest.mark.parametrize(
    ("kind", "spec", "style", "table"),
    [
        (
            "ClusterInformation",
            {"clusterGUID": "g", "clusterType": "k8s", "datastoreReady": True},
            "ps",
            "NAME   CLUSTERGUID   CLUSTERTYPE   CALICOVERSION   DATASTOREREADY   \n"
            "x      g             k8s                           true             \n\n",
        ),
        ("FelixConfiguration", {"logSeverityScreen": "Info"}, "wide", "NAME   \nx      \n\n"),
        (
            "Profile",
            {"labelsToApply": {"pcns.b": "2", "pcns.a": "1"}},
            "wide",
            "NAME   LABELS              \nx      pcns.a=1,pcns.b=2   \n\n",
        ),
        (
            "IPReservation",
            {"reservedCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]},
            "wide",
            "NAME   CIDRS                     \nx      10.0.0.0/24,10.0.1.0/24   \n\n",
        ),
        (
            "GlobalNetworkPolicy",
            {"selector": "all()"},
            "wide",
            "NAME   ORDER   SELECTOR   \nx      <nil>   all()      \n\n",
        ),
        (
            "GlobalNetworkPolicy",
            {"selector": "all()", "order": 1234567.5},
            "wide",
            "NAME   ORDER           SELECTOR   \nx      1.2345675e+06   all()      \n\n",
        ),
    ],
)
async def test_the_columns_of_each_kind(kind: str, spec: Resource, style: str, table: str) -> None:
    terminal = Terminal()
    await terminal.client.create(new_resource(kind, "x", spec))
    assert await terminal.ok("get", kind, "-o", style) == table


async def test_long_lists_of_networks_are_cut_off() -> None:
    terminal = Terminal()
    nets = [f"10.{number}.0.0/16" for number in range(100)]
    await terminal.client.create(new_resource("GlobalNetworkSet", "x", {"nets": nets}))
    row = (await terminal.ok("get", "gnetsets", "-o", "wide")).splitlines()[1]
    assert row == f"x      {','.join(nets)[:77]}...   "


async def test_a_namespace_asked_for_is_a_column() -> None:
    terminal = Terminal()
    nats = [{"internalIP": "10.0.0.1", "externalIP": "1.2.3.4"}]
    spec = {
        "orchestrator": "k8s", "node": "n", "pod": "p", "endpoint": "eth0", "ipNATs": nats,
    }  # fmt: skip
    endpoint = new_resource("WorkloadEndpoint", "n-k8s-p-eth0", spec, namespace="ops")
    await terminal.client.create(endpoint)
    columns = ("get", "wep", "-o", "custom-columns=WORKLOAD,ORCHESTRATOR,NATS")
    assert await terminal.ok(*columns, "-n", "ops") == (
        "NAMESPACE   WORKLOAD   ORCHESTRATOR   NATS                 \n"
        "ops         p          k8s            {10.0.0.1 1.2.3.4}   \n\n"
    )


async def test_a_program_s_apply_leaves_no_label_of_the_one_before() -> None:
    terminal = Terminal()
    await terminal.client.create(new_resource("Node", "n", {}, labels={"old": "1"}))
    await terminal.client.apply(new_resource("Node", "n", {}, labels={"new": "1"}))
    assert (await terminal.client.get("Node", "n"))["metadata"]["labels"] == {"new": "1"}


async def test_a_locked_data_store_lets_reports_be_used_and_is_unlocked_again() -> None:
    terminal = Terminal()
    info = {"clusterGUID": "abc", "datastoreReady": True}
    await terminal.client.create(new_resource("ClusterInformation", "default", info))
    await terminal.ok("ipam", "check", "-o", "early")
    release = ("ipam", "release", "--from-report", "late")
    assert await terminal.ok("datastore", "migrate", "lock") == "Datastore locked.\n"
    await terminal.ok("ipam", "check", "-o", "late")
    assert "You may now unlock" in await terminal.ok(*release)
    assert await terminal.ok("datastore", "migrate", "unlock") == "Datastore unlocked.\n"
    # Unlocked and locked again it is another state than the report's.
    assert "are all stale" in await terminal.fails(*release)
    assert "invalid value" in await terminal.fails("ipam", "configure", "--max-blocks-per-host=-1")


async def test_yaml_is_quoted_and_broken_as_go_s() -> None:
    terminal = Terminal()
    long = " || ".join(f"rack == '{number}'" for number in range(20))
    labels = {"a": "", "b": "true", "c": "1"}
    spec = {"cidr": "10.0.0.0/16", "nodeSelector": long}
    annotations = {"two": "lines\nof text\n"}
    await terminal.client.create(
        new_resource("IPPool", "p", spec, labels=labels, annotations=annotations)
    )
    shown = await terminal.ok("get", "pool", "p", "-o", "yml")
    for line in (
        '    a: ""\n    b: "true"\n    c: "1"\n',
        "    two: |\n      lines\n      of text\n",
        f"  nodeSelector: {long}\n",
        '  creationTimestamp: "20',
        "  - Workload\n",
    ):
        assert line in shown


@pytest.mark.parametrize("style", ["merge", "json"])
@pytest.mark.parametrize(
    "patch",
    [
        *(
            '{"metadata": null}',
            '{"metadata": 5}',
            '{"metadata": {"name": null}}',
            '"x"',
            "[" * 5000,
        ),
        '[{"op": "replace", "path": "", "value": 5}]',
        '[{"op": "remove", "path": "/metadata"}]',
        '[{"op": "remove", "path": ""}]',
    ],
)
async def test_a_patch_that_leaves_no_resource_is_refused(patch: str, style: str) -> None:
    terminal = Terminal()
    terminal.files["-"] = POOL
    await terminal.ok("apply", "-f", "-")
    before = terminal.datastore.revision
    error = await terminal.fails("patch", "ippool", "extra", "-t", style, "-p", patch)
    assert error.count("\n") == 1
    assert terminal.datastore.revision == before


async def test_a_file_that_contains_itself_is_refused() -> None:
    terminal = Terminal()
    terminal.files["-"] = "&a [*a]"
    assert "nested too deeply" in await terminal.fails("apply", "-f", "-")


async def test_what_others_stored_that_is_none_costs_only_its_cell() -> None:
    terminal = Terminal()
    for name, spec in (("a", {"order": {}}), ("b", 5), ("c", {"order": 7.5, "selector": "x"})):
        resource = new_resource("GlobalNetworkPolicy", name, {})
        terminal.datastore.put(key_of_resource(resource), {**resource, "spec": spec})
    assert await terminal.ok("get", "gnp", "-o", "wide") == (
        "NAME   ORDER   SELECTOR   \na                         \nb                         \n"
        "c      7.5     x          \n\n"
    )
