"""Calico's CNI plugin on an emulated kernel: what a pod gets, what stays, what goes wrong."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from agents.calico import client
from agents.calico.client import ResourceClient
from agents.calico.cni import CalicoCni
from agents.calico.cni_conf import CONF_FILE, NODENAME_FILE, host_interface
from agents.calico.datastore import Query
from agents.calico.errors import CniError, DoesNotExistError
from agents.calico.ipam.model import IpamConfig
from agents.calico.net import Ip
from agents.calico.resources import endpoint_name, labels_of, name_of, new_resource, spec_of
from agents.calico.startup import NodeFacts, start_node
from agents.calico.tunnel import IPIP, TunnelAddresses
from emulator.addr import Prefix, format_mac, parse_ip
from emulator.errors import UsageError
from emulator.netstack.fib import Route
from emulator.netstack.kernel import Kernel
from emulator.netstack.show.route import render_ip_route
from tests.calico_cluster import Cluster
from tests.calico_memory import MemoryDatastore

if TYPE_CHECKING:
    from pathlib import Path

LOG = logging.Logger("test")
SEED_POD = "nginx-deployment-69df458bc5-cg4mk"


@dataclass(frozen=True)
class Pod:
    """What the plugin reads of a pod."""

    name: str
    namespace: str = "default"
    service_account: str = "default"
    obj: dict[str, Any] = field(default_factory=dict)


def annotated(name: str, **annotations: str) -> Pod:
    named = {f"cni.projectcalico.org/{key}": value for key, value in annotations.items()}
    return Pod(name, obj={"metadata": {"annotations": named, "labels": {"app": "x"}}})


class Node:
    """kube-1 of the tutorial: a kernel, its files, and the cluster's datastore."""

    def __init__(self, root: Path, store: MemoryDatastore | None = None) -> None:
        self.store = store or MemoryDatastore()
        self.cluster = Cluster(self.store)
        self.root = root
        self.now = 0.0
        self.kernel = Kernel("kube-1", clock=lambda: self.now, rng=random.Random(1))
        net = self.kernel.root
        net.sysctl["net.ipv4.ip_forward"] = 1
        net.link_add("eth0", "dummy")
        net.addr_add("eth0", parse_ip("10.10.95.205"), 20)
        net.link_set("eth0", up=True)
        net.route_replace(Route(Prefix(0, 0), gateway=parse_ip("10.10.80.1"), dev="eth0"))
        self.resources = ResourceClient(self.store, self.cluster.clock, random.Random(2))
        self.namespace: dict[str, Any] = {}
        self.written: dict[str, dict[str, str]] = {}
        self.cni = CalicoCni(
            self.kernel,
            root,
            "kube-1",
            datastore=self.store,
            ipam=self.cluster.ipam,
            resources=self.resources,
            clock=self.cluster.clock,
            log=LOG,
            namespace_of=self._namespace_of,
            annotate=self._write,
        )

    async def _namespace_of(self, name: str) -> dict[str, Any]:
        return self.namespace

    async def _write(self, pod: Any, annotations: dict[str, str]) -> None:
        self.written[pod.name] = annotations

    async def start(self, **facts: Any) -> None:
        node = NodeFacts("kube-1", "10.10.95.205/20", **facts)
        await start_node(node, self.resources, self.cluster.ipam, random.Random(3), self.root)

    async def tunnel(self) -> None:
        addresses = TunnelAddresses(
            "kube-1", self.store, self.cluster.ipam, self.resources, LOG, None
        )
        await addresses.reconcile()

    async def add(self, pod: Pod, container_id: str = "c1") -> str:
        netns = f"cni-{container_id}"
        if netns not in self.kernel.netns_names():
            self.kernel.netns_add(netns)
        return (await self.cni.add(container_id, netns, pod)).ip

    async def delete(self, container_id: str = "c1") -> None:
        await self.cni.delete(container_id, f"cni-{container_id}")

    def routes(self, netns: str = "") -> str:
        ns = self.kernel.netns(netns) if netns else self.kernel.root
        return render_ip_route(ns.routes())

    def ping(self, netns: str, dst: str) -> int | None:
        """The TTL of the answer, None without one."""
        sock = self.kernel.netns(netns).sockets.ping_open()
        sock.send(parse_ip(dst), 1, bytes(56))
        for _ in range(50):
            self.kernel.handle_timer()
            answer = sock.receive()
            if answer is not None:
                return answer.ttl if answer.icmp_type == 0 else None
            self.now += 0.1
        return None


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    await made.start()
    await made.tunnel()
    return made


async def test_a_pod_gets_the_tutorial_s_address_interface_and_route(node: Node) -> None:
    # Thirteen pods came and went before it.
    for number in range(13):
        await node.add(Pod(f"early-{number}"), f"e{number}")
        await node.delete(f"e{number}")
    for number, name in enumerate(("tnsdq", "tmqqn", "cg4mk")):
        await node.add(Pod(f"nginx-deployment-69df458bc5-{name}"), f"n{number}")
    assert node.routes().splitlines()[-3:] == [
        "192.168.126.78 dev calib0aa6a43271 scope link ",
        "192.168.126.79 dev cali3489915b309 scope link ",
        "192.168.126.80 dev cali2d894f7a3f6 scope link ",
    ]
    assert node.routes("cni-n2").splitlines() == [
        "default via 169.254.1.1 dev eth0 ",
        "169.254.1.1 dev eth0 scope link ",
    ]


async def test_interfaces_have_calico_s_addresses_and_settings(node: Node) -> None:
    ip = await node.add(Pod(SEED_POD))
    host = next(link for link in node.kernel.root.links() if link.name == "cali2d894f7a3f6")
    assert (format_mac(host.mac), host.mtu, host.up) == ("ee:ee:ee:ee:ee:ee", 1440, True)
    (address,) = [each for each in node.kernel.netns("cni-c1").addrs() if each.dev == "eth0"]
    assert (address.ip, address.length) == (parse_ip(ip), 32)
    assert not [each for each in node.kernel.root.addrs() if each.dev == host.name]
    sysctl = node.kernel.root.sysctl
    for name, value in (("proxy_arp", 1), ("route_localnet", 1), ("forwarding", 1)):
        assert sysctl[f"net.ipv4.conf.{host.name}.{name}"] == value
    assert sysctl[f"net.ipv4.neigh.{host.name}.proxy_delay"] == 0


async def test_pods_reach_each_other_and_their_node_through_the_proxy(node: Node) -> None:
    await node.add(Pod("one"), "c1")
    other = await node.add(Pod("two"), "c2")
    assert node.ping("cni-c1", "10.10.95.205") == 64
    assert node.ping("cni-c1", other) == 63
    (neighbour,) = node.kernel.netns("cni-c1").neighs()
    assert (neighbour.ip, neighbour.mac) == (parse_ip("169.254.1.1"), b"\xee" * 6)


async def test_the_endpoint_says_what_felix_needs(node: Node) -> None:
    pod = Pod(
        SEED_POD,
        obj={
            "metadata": {
                "labels": {"app": "nginx"},
                "generateName": "nginx-deployment-69df458bc5-",
            },
            "spec": {"containers": [{"ports": [{"containerPort": 80, "name": "http"}]}]},
        },
    )
    ip = await node.add(pod)
    name = "kube--1-k8s-nginx--deployment--69df458bc5--cg4mk-eth0"
    assert endpoint_name("kube-1", "k8s", SEED_POD) == name
    endpoint = await node.resources.get("WorkloadEndpoint", name, "default")
    assert labels_of(endpoint) == {
        "app": "nginx",
        "projectcalico.org/namespace": "default",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "default",
    }
    (link,) = [each for each in node.kernel.netns("cni-c1").links() if each.name == "eth0"]
    assert spec_of(endpoint) == {
        "orchestrator": "k8s",
        "node": "kube-1",
        "containerID": "c1",
        "pod": SEED_POD,
        "endpoint": "eth0",
        "serviceAccountName": "default",
        "ipNetworks": [f"{ip}/32"],
        "profiles": ["kns.default", "ksa.default.default"],
        "interfaceName": "cali2d894f7a3f6",
        "mac": format_mac(link.mac),
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
    }
    assert node.written[SEED_POD] == {
        "cni.projectcalico.org/containerID": "c1",
        "cni.projectcalico.org/podIP": f"{ip}/32",
        "cni.projectcalico.org/podIPs": f"{ip}/32",
    }


async def test_the_address_is_noted_with_its_pod(node: Node) -> None:
    node.cluster.now_s = 1.5
    await node.add(Pod("web"), "c1")
    block = await node.cluster.block("192.168.126.64/26")
    assert block.held()[1][1] == (
        "k8s-pod-network.c1",
        {
            "namespace": "default",
            "node": "kube-1",
            "pod": "web",
            "timestamp": "2026-01-01 00:00:01.5 +0000 UTC",
        },
    )


async def test_adding_and_deleting_may_be_repeated(node: Node) -> None:
    before = node.store.keys()
    ip = await node.add(Pod("web"))
    assert await node.add(Pod("web")) == ip
    await node.cni.check("c1", "cni-c1")
    await node.delete()
    await node.delete()
    await node.cni.delete("never-seen", "cni-never-seen")
    assert node.store.keys() == before
    assert "cali" not in node.routes()
    assert not [link for link in node.kernel.root.links() if link.name.startswith("cali")]
    assert not list((node.root / "var/lib/cni/results").iterdir())
    with pytest.raises(CniError, match="no cached result for container c1"):
        await node.cni.check("c1", "cni-c1")


async def test_deleting_an_old_sandbox_leaves_its_pod_s_new_one_alone(node: Node) -> None:
    first = await node.add(Pod("web"), "old")
    second = await node.add(Pod("web"), "new")
    assert first != second
    await node.delete("old")
    assert [link.name for link in node.kernel.netns("cni-old").links()] == ["lo"]
    await node.cni.check("new", "cni-new")
    assert f"{second} dev {host_interface('default', 'web')} scope link" in node.routes()
    assert [key for key in await node.cluster.keys() if "k8s-pod-network" in key] == [
        "handle/k8s-pod-network.new"
    ]


async def test_an_address_under_the_handle_of_before_3_0_is_given_back_as_well(node: Node) -> None:
    await node.add(Pod("web"))
    await node.cluster.take("kube-1", handle="default.web")
    await node.delete()
    assert not [key for key in await node.cluster.keys() if "web" in key or "k8s-pod" in key]


async def test_a_deleted_node_takes_along_what_is_its_own_and_nothing_else(node: Node) -> None:
    await node.add(Pod("web"))
    await node.resources.create(new_resource("Node", "kube-2", {}))
    own, other = (
        (
            new_resource("FelixConfiguration", f"node.{name}", {}),
            new_resource("BGPConfiguration", f"node.{name}", {"logSeverityScreen": "Info"}),
            new_resource(
                "BGPPeer", f"of-{name}", {"node": name, "peerIP": "10.0.0.9", "asNumber": 1}
            ),
        )
        for name in ("kube-1", "kube-2")
    )
    endpoint = (await node.resources.list("WorkloadEndpoint"))[0]
    spec = {**endpoint["spec"], "node": "kube-2", "pod": "far", "ipNetworks": ["192.168.7.7/32"]}
    far = new_resource("WorkloadEndpoint", "kube--2-k8s-far-eth0", spec, namespace="default")
    await node.cluster.ipam.assign_ip("kube-2", Ip.parse("192.168.7.7"), "far")
    for each in (*own, *other, far):
        await node.resources.create(each)
    await node.resources.delete("Node", "kube-1")
    for each in other:
        await node.resources.get(each["kind"], name_of(each))
    for each in own:
        with pytest.raises(DoesNotExistError):
            await node.resources.get(each["kind"], name_of(each))
    left = await node.resources.list("WorkloadEndpoint")
    assert [name_of(each) for each in left] == ["kube--2-k8s-far-eth0"]
    # Its pods' and its tunnel's addresses, blocks and claims.
    assert await node.cluster.keys() == [
        "assignment/ipv4/block/192.168.7.0-26",
        "handle/far",
        "host/kube-2/ipv4/block/192.168.7.0-26",
    ]


async def test_a_deleted_pool_gives_up_its_blocks(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "POOL_PAUSE_S", 0.0)
    ip = await node.add(Pod("web"))
    await node.resources.delete("IPPool", "default-ipv4-ippool")
    keys = await node.cluster.keys()
    assert not [key for key in keys if key.startswith("host/kube-1/")]
    # What is in use stays in use.
    (block,) = await node.cluster.ipam.blocks()
    assert block.ips_by_handle("k8s-pod-network.c1") == [Ip.parse(ip)]
    assert not block.host


async def test_check_names_what_is_not_as_it_was(node: Node) -> None:
    ip = await node.add(Pod("web"))
    host = host_interface("default", "web")
    node.kernel.root.route_del(Route(Prefix(parse_ip(ip), 32), dev=host, scope="link"))
    with pytest.raises(CniError, match=f"Expected Route {ip} dev {host} not found"):
        await node.cni.check("c1", "cni-c1")
    node.kernel.root.route_replace(Route(Prefix(parse_ip(ip), 32), dev=host, scope="link"))
    await node.cluster.free(ip)
    with pytest.raises(CniError, match="IP is unassigned"):
        await node.cni.check("c1", "cni-c1")


async def test_what_a_killed_node_held_is_given_back(node: Node, tmp_path: Path) -> None:
    before = node.store.keys()
    await node.add(Pod("one"), "c1")
    kept = await node.add(Pod("two"), "c2")
    # Killed in the middle of an ADD: noted, nothing wired yet.
    record = {"namespace": "default", "pod": "x", "netns": "cni-c3", "network": "k8s-pod-network"}
    (tmp_path / "var/lib/calico/sandboxes/c3.json").write_text(json.dumps(record))
    await node.cluster.take("kube-1", handle="k8s-pod-network.c3")
    again = Node(tmp_path, node.store)
    assert await again.cni.collect(["c2"]) == ("c1", "c3")
    assert [key for key in await again.cluster.keys() if "k8s-pod" in key] == [
        "handle/k8s-pod-network.c2"
    ]
    assert await again.cni.collect([]) == ("c2",)
    assert again.store.keys() == before
    assert kept


async def test_a_failed_add_leaves_nothing(node: Node) -> None:
    before = node.store.keys()
    ip = "192.168.126.65"
    node.kernel.root.link_add("other0", "dummy")
    node.kernel.root.link_set("other0", up=True)
    node.kernel.root.route_replace(Route(Prefix(parse_ip(ip), 32), dev="other0", scope="link"))
    with pytest.raises(CniError) as caught:
        await node.add(Pod("web"))
    assert str(caught.value).startswith("route (Ifindex: ")
    assert str(caught.value).endswith(
        f"Dst: {ip}/32, Scope: link) already exists for an interface other than "
        f"'{host_interface('default', 'web')}'"
    )
    assert node.store.keys() == before
    assert not list((node.root / "var/lib/calico/sandboxes").iterdir())


# Annotations -----------------------------------------------------------------------------------


async def test_a_pod_may_ask_for_its_address_pool_and_mac(node: Node) -> None:
    await node.cluster.pool("extra", "10.7.0.0/24", nodeSelector="!all()")
    assert await node.add(annotated("fix", ipAddrs='["192.168.9.9"]'), "c1") == "192.168.9.9"
    assert (await node.add(annotated("named", ipv4pools='["extra"]'), "c2")).startswith("10.7.0.")
    asked = annotated("cidr", ipv4pools='["10.7.0.0/24"]', hwAddr="1c:0c:0a:c0:ff:ee")
    assert (await node.add(asked, "c3")).startswith("10.7.0.")
    (link,) = [each for each in node.kernel.netns("cni-c3").links() if each.name == "eth0"]
    assert format_mac(link.mac) == "1c:0c:0a:c0:ff:ee"
    # The namespace's wish counts where the pod has none.
    node.namespace = {"metadata": {"annotations": {"cni.projectcalico.org/ipv4pools": '["extra"]'}}}
    assert (await node.add(Pod("web"), "c4")).startswith("10.7.0.")
    assert await node.add(annotated("own", ipv4pools='["default-ipv4-ippool"]'), "c5") == (
        "192.168.126.65"
    )
    # A new sandbox of the same pod asks for the same address while the old one still has it.
    assert await node.add(annotated("fix", ipAddrs='["192.168.9.9"]'), "c6") == "192.168.9.9"


@pytest.mark.parametrize(
    ("annotations", "error"),
    [
        ({"ipAddrs": "192.168.9.9"}, "failed to parse '192.168.9.9' as JSON"),
        ({"ipAddrs": '["x"]'}, "invalid IP format"),
        ({"ipAddrs": '["1.1.1.1","2.2.2.2"]'}, "can't have more than one IPv4 address"),
        ({"ipAddrs": '["172.16.0.1"]'}, "The provided IP address is not in a configured pool"),
        (
            {"ipAddrs": '["1.1.1.1"]', "ipAddrsNoIpam": '["1.1.1.1"]'},
            "can't have both annotations: 'ipAddrs' and 'ipAddrsNoIpam' in use at the same time",
        ),
        ({"ipAddrsNoIpam": '["1.1.1.1"]'}, "requested feature is not enabled: ip_addrs_no_ipam"),
        ({"floatingIPs": '["1.1.1.1"]'}, "requested feature is not enabled: floating_ips"),
        ({"ipv4pools": '["10.1.0.0/24"]'}, "the given pool (10.1.0.0/24) does not exist"),
        ({"ipv4pools": '["nowhere"]'}, 'error parsing pool "nowhere": invalid CIDR address'),
        ({"ipFamilies": '["IPv5"]'}, 'error parsing ipFamilies: ["IPv5"]'),
    ],
)
async def test_wishes_that_cannot_be_granted_say_why(
    node: Node, annotations: dict[str, str], error: str
) -> None:
    with pytest.raises(CniError) as caught:
        await node.add(annotated("web", **annotations))
    assert error in str(caught.value)


async def test_an_address_beside_ipam_and_a_floating_one_if_allowed(node: Node) -> None:
    conf = json.loads((node.root / CONF_FILE).read_text())
    conf["plugins"][0]["feature_control"] = {"ip_addrs_no_ipam": True, "floating_ips": True}
    (node.root / CONF_FILE).write_text(json.dumps(conf))
    asked = annotated("web", ipAddrsNoIpam='["172.16.0.9"]', floatingIPs='["5.5.5.5"]')
    assert await node.add(asked) == "172.16.0.9"
    name = endpoint_name("kube-1", "k8s", "web")
    endpoint = await node.resources.get("WorkloadEndpoint", name, "default")
    assert spec_of(endpoint)["ipNATs"] == [{"internalIP": "172.16.0.9", "externalIP": "5.5.5.5"}]
    await node.cni.check("c1", "cni-c1")
    await node.delete()


# What goes wrong -------------------------------------------------------------------------------


async def test_without_addresses_the_event_tells_what_to_look_at(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.start(pool_cidr="192.168.0.0/26", ipip="Never")
    await node.cluster.take("kube-1", 64)
    with pytest.raises(CniError) as caught:
        await node.add(Pod("web"))
    assert str(caught.value) == (
        "failed to request IPv4 addresses: Assigned 0 out of 1 requested IPv4 addresses; "
        "No IPs available in pools: [192.168.0.0/26]"
    )
    await node.cluster.ipam.set_config(IpamConfig(strict_affinity=True))
    with pytest.raises(CniError, match="No more free affine blocks and strict affinity enabled"):
        await node.add(Pod("web"))


async def test_before_calico_node_has_started_pods_wait(tmp_path: Path) -> None:
    node = Node(tmp_path)
    assert node.cni.ready() == "cni plugin not initialized"
    with pytest.raises(CniError, match="check that the calico/node container is running"):
        await node.add(Pod("web"))
    (tmp_path / NODENAME_FILE).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / NODENAME_FILE).write_text("kube-1")
    assert node.cni.ready() is None
    with pytest.raises(CniError, match="Calico is currently not ready to process requests"):
        await node.add(Pod("web"))


# Start -----------------------------------------------------------------------------------------


async def test_a_first_start_makes_the_cluster_s_resources_once(node: Node) -> None:
    pool = spec_of(await node.resources.get("IPPool", "default-ipv4-ippool"))
    assert (pool["cidr"], pool["ipipMode"], pool["natOutgoing"], pool["blockSize"]) == (
        "192.168.0.0/16",
        "Always",
        True,
        26,
    )
    information = spec_of(await node.resources.get("ClusterInformation", "default"))
    assert information["datastoreReady"] is True
    kube1 = spec_of(await node.resources.get("Node", "kube-1"))
    assert kube1 == {
        "bgp": {"ipv4Address": "10.10.95.205/20", "ipv4IPIPTunnelAddr": "192.168.126.64"},
        "orchRefs": [{"nodeName": "kube-1", "orchestrator": "k8s"}],
    }
    assert await node.cluster.keys() == [
        "assignment/ipv4/block/192.168.126.64-26",
        "handle/ipip-tunnel-addr-kube-1",
        "host/kube-1",
        "host/kube-1/ipv4/block/192.168.126.64-26",
    ]
    # Again: all stays, the tunnel's address too.
    await node.start(labels={"rack": "1"})
    await node.tunnel()
    again = await node.resources.get("Node", "kube-1")
    assert spec_of(again) == kube1
    assert labels_of(again) == {"rack": "1"}
    assert spec_of(await node.resources.get("ClusterInformation", "default")) == information


async def test_two_nodes_with_one_address_are_refused(node: Node) -> None:
    facts = NodeFacts("kube-2", "10.10.95.205/20")
    with pytest.raises(UsageError) as caught:
        await start_node(facts, node.resources, node.cluster.ipam, random.Random(1), node.root)
    assert str(caught.value) == (
        "Calico node 'kube-1' is already using the IPv4 address 10.10.95.205."
    )


async def test_the_tunnel_address_follows_the_pools(node: Node) -> None:
    told: list[tuple[str, str]] = []
    addresses = TunnelAddresses(
        "kube-1",
        node.store,
        node.cluster.ipam,
        node.resources,
        LOG,
        lambda kind, ip: told.append((kind.attribute, ip)),
    )
    await addresses.reconcile()
    assert told == [(IPIP.attribute, "192.168.126.64")]
    pool = await node.resources.get("IPPool", "default-ipv4-ippool")
    pool["spec"].update(ipipMode="Never", vxlanMode="CrossSubnet")
    await node.resources.update(pool)
    await addresses.reconcile()
    assert told[1:] == [("ipipTunnelAddress", ""), ("vxlanTunnelAddress", "192.168.126.65")]
    kube1 = spec_of(await node.resources.get("Node", "kube-1"))
    assert kube1["ipv4VXLANTunnelAddr"] == "192.168.126.65"
    assert kube1["bgp"] == {"ipv4Address": "10.10.95.205/20"}
    # The pool goes, another comes.
    await node.resources.delete("IPPool", "default-ipv4-ippool")
    await node.resources.create(
        new_resource("IPPool", "next", {"cidr": "10.9.0.0/24", "ipipMode": "CrossSubnet"})
    )
    await addresses.reconcile()
    assert told[3][0] == "ipipTunnelAddress"
    assert told[3][1].startswith("10.9.0.")
    assert told[4] == ("vxlanTunnelAddress", "")
    assert [key for key in await node.cluster.keys() if "tunnel" in key] == [
        "handle/ipip-tunnel-addr-kube-1"
    ]


async def test_an_address_another_holder_has_is_not_the_node_s(node: Node) -> None:
    await node.cluster.free("192.168.126.64")
    taken = Ip.parse("192.168.126.64")
    await node.cluster.ipam.assign_ip("kube-1", taken, "k8s-pod-network.x", {"pod": "x"})
    await node.tunnel()
    kube1 = spec_of(await node.resources.get("Node", "kube-1"))
    assert kube1["bgp"]["ipv4IPIPTunnelAddr"] == "192.168.126.65"
    snapshot = await node.store.read(Query("/calico/ipam/v2/handle/k8s-pod-network.x"))
    assert snapshot.one(0) is not None


async def test_the_tunnel_address_is_kept_when_somebody_else_writes_on_the_node(
    tmp_path: Path,
) -> None:
    made = Node(tmp_path)
    await made.start()
    labelled = 0

    async def label(verb: str, keys: tuple[str, ...]) -> None:
        nonlocal labelled
        if verb == "commit" and any(key.endswith("/nodes/kube-1") for key in keys) and not labelled:
            labelled += 1
            kube1 = await made.resources.get("Node", "kube-1")
            kube1["metadata"]["labels"] = {"rack": "1"}
            await made.resources.update(kube1)

    made.store.before = label
    await made.tunnel()
    assert labelled == 1
    kube1 = await made.resources.get("Node", "kube-1")
    assert labels_of(kube1) == {"rack": "1"}
    assert spec_of(kube1)["bgp"]["ipv4IPIPTunnelAddr"] == "192.168.126.64"


async def test_a_tunnel_address_taken_in_a_life_that_ended_too_soon_is_given_back(
    node: Node,
) -> None:
    """It was taken and not yet written on the Node."""
    kube1 = await node.resources.get("Node", "kube-1")
    del kube1["spec"]["bgp"]["ipv4IPIPTunnelAddr"]
    await node.resources.update(kube1)
    await node.tunnel()
    kube1 = spec_of(await node.resources.get("Node", "kube-1"))
    held = await node.cluster.ipam.ips_by_handle(IPIP.handle("kube-1"))
    assert [str(ip) for ip in held] == [kube1["bgp"]["ipv4IPIPTunnelAddr"]]


async def test_no_pod_is_wired_before_felix_has_programmed_the_kernel(node: Node) -> None:
    programmed = False
    cni = CalicoCni(
        node.kernel,
        node.root,
        "kube-1",
        datastore=node.store,
        ipam=node.cluster.ipam,
        resources=node.resources,
        clock=node.cluster.clock,
        log=LOG,
        programmed=lambda: programmed,
    )
    assert cni.ready() == "cni plugin not initialized"
    programmed = True
    assert cni.ready() is None


async def test_an_address_is_free_only_when_no_endpoint_names_it(node: Node) -> None:
    """Else another pod may get it while rules still take it for the one that goes."""
    await node.add(Pod("one"))
    seen: list[bool] = []

    async def look(verb: str, keys: tuple[str, ...]) -> None:
        if verb == "commit" and any("/ipam/v2/handle/" in key for key in keys):
            seen.append(bool(node.store.keys("/calico/resources/v3/projectcalico.org/workload")))

    node.store.before = look
    await node.delete()
    assert seen == [False]
    assert "cali" not in node.routes()


async def test_an_add_that_a_killed_node_left_half_done_leaks_no_address(node: Node) -> None:
    await node.add(Pod("one"))
    note = node.root / "var/lib/calico/sandboxes/c1.json"
    document = json.loads(note.read_text())
    del document["result"]
    note.write_text(json.dumps(document))
    await node.add(Pod("one"))
    (block,) = await node.cluster.ipam.blocks()
    assert len(block.ips_by_handle("k8s-pod-network.c1")) == 1


async def test_what_the_api_server_refuses_leaves_nothing_behind(node: Node) -> None:
    async def refuse(name: str) -> dict[str, Any]:
        raise UsageError("nobody answers")

    node.cni._namespace_of = refuse
    with pytest.raises(UsageError):
        await node.add(Pod("one"))
    assert not list((node.root / "var/lib/calico/sandboxes").glob("*.json"))
