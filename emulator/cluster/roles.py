"""Which code each role of a cluster runs.

Importing this module is the zygote's warm-up for nodes, which are many.  etcd and the control plane
import what only they run when they have been forked.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import TYPE_CHECKING, Final

from agents.apiserver.config import ApiServerConfig, StorageRoot, UserInfo, Verdict
from agents.node.config import BfdSettings, CalicoSettings, NodeConfig, Relay
from agents.node.daemon import run_node
from emulator.addr import format_ip
from emulator.cluster.credentials import (
    CONTROLLERS,
    KUBELET_CLIENT,
    NODE,
    SCHEDULER,
    Credentials,
)
from emulator.cluster.networks import flannel_config
from emulator.cluster.order import lay_together
from emulator.cluster.process import run_role
from emulator.kubeclient.config import KubeConfig
from emulator.runtime.listener import listen_tcp
from emulator.runtime.tls import rehearse_handshakes
from emulator.workloads.images import default_registry
from etcd.core.http2 import huffman
from etcd.server.config import EtcdConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from typing import Any

    from agents.apiserver.config import Admission
    from emulator.apimachinery.objects import Obj
    from emulator.cluster.controlplane import ControlPlaneConfig
    from emulator.cluster.plan import ClusterPlan, NodePlan
    from emulator.cluster.zygote import Child
    from emulator.runtime.role import RoleEnv

    Role = Callable[[RoleEnv], Coroutine[Any, Any, None]]

# More nodes than this for each processor give way to etcd and the control plane, by so much:
# a tenth of their weight.
CROWD: Final = 8
CROWD_NICENESS: Final = 10


def warm_up(plan: ClusterPlan) -> dict[str, Role]:
    """Make in the parent what each node would make alike: its memory is then shared.

    Returns what ``run_child`` runs, by role.
    """
    credentials = Credentials.read(plan.pki)
    client = kubeconfig(plan, credentials, NODE).ssl_context()
    if client is not None:
        pair = credentials.apiserver
        rehearse_handshakes(client, pair.cert, pair.key, plan.api_host)
    # The pod network's part of a node, which only such clusters load.
    if plan.spec.network.calico is not None:
        from agents.node.calico import warm_up as warm_up_calico

        warm_up_calico()
    else:
        importlib.import_module("agents.node.flannel")
    huffman.decode(huffman.encode(b"?"))  # makes tables of 270 KiB
    default_registry().resolve("nginx")  # compiles the patterns every other image is tried with
    lay_together()
    return roles_of(plan, credentials)


def roles_of(plan: ClusterPlan, credentials: Credentials) -> dict[str, Role]:
    """What each role of a cluster runs, by name."""
    roles: dict[str, Role] = {
        "etcd": functools.partial(_run_etcd, plan),
        "controlplane": functools.partial(_run_controlplane, plan, credentials),
    }
    niceness = nodes_niceness(len(plan.nodes), os.cpu_count() or 1)
    for node in plan.nodes:
        config = node_config(plan, node, credentials)
        roles[node.spec.name] = functools.partial(_run_node, config, niceness)
    return roles


def nodes_niceness(nodes: int, processors: int) -> int:
    """nice(2) of each node of a cluster.

    A hundred nodes that start on two processors leave the supervisor, etcd and the control plane,
    which all of them wait for, a fiftieth each; and they react to each other one by one instead of
    to many at once, which takes twice the processor time.
    """
    return CROWD_NICENESS if nodes > CROWD * processors else 0


def run_child(made: Mapping[str, Role], child: Child) -> int:
    """Run the role a forked child was asked to be; returns its exit code."""
    return run_role(
        made[child.role],
        name=child.role,
        on_ready=child.ready,
        on_failed=child.failed,
        lifeline=child.lifeline,
    )


async def _run_node(config: NodeConfig, niceness: int, env: RoleEnv) -> None:
    os.nice(niceness)
    await run_node(config, env)


async def _run_etcd(plan: ClusterPlan, env: RoleEnv) -> None:
    from etcd.server.daemon import run_etcd

    await run_etcd(etcd_config(plan), env)


async def _run_controlplane(plan: ClusterPlan, credentials: Credentials, env: RoleEnv) -> None:
    # Nodes start at the same moment: what they ask waits here while the imports go on.
    try:
        listener = listen_tcp(plan.api_host, plan.api_port)
    except OSError:
        listener = None  # the API server says what is wrong
    from emulator.cluster.controlplane import run_controlplane

    await run_controlplane(controlplane_config(plan, credentials), env, listener)


def kubeconfig(plan: ClusterPlan, credentials: Credentials, user: str) -> KubeConfig:
    """How a role that is ``user`` reaches the API server."""
    ca_pem = credentials.ca.read_text()
    return KubeConfig(plan.server, ca_pem=ca_pem, token=credentials.token(user))


def etcd_config(plan: ClusterPlan) -> EtcdConfig:
    return EtcdConfig(
        name=plan.spec.name,
        data_dir=str(plan.directory / "etcd"),
        cluster_token=plan.spec.name,
        listen_host=plan.etcd_host,
        listen_port=plan.etcd_port,
    )


def controlplane_config(plan: ClusterPlan, credentials: Credentials) -> ControlPlaneConfig:
    from emulator.cluster.controlplane import ControlPlaneConfig

    calico = plan.spec.network.calico is not None
    definitions: tuple[Mapping[str, Any], ...] = ()
    roots: dict[str, StorageRoot] = {}
    admissions: dict[str, Admission] = {}
    if calico:
        from agents.calico import crds, resources

        definitions = crds.definitions()
        roots[crds.GROUP] = StorageRoot(resources.ROOT, resources.API_VERSION)
        admissions[crds.GROUP] = calico_admission
    apiserver = ApiServerConfig(
        listen_host=plan.api_host,
        listen_port=plan.api_port,
        etcd_endpoints=plan.etcd_endpoints,
        etcd_access=plan.spec.etcd_access,
        tls_cert=str(credentials.apiserver.cert),
        tls_key=str(credentials.apiserver.key),
        client_ca=str(credentials.ca),
        service_cidr=str(plan.spec.service_cidr),
        advertise_ip=format_ip(plan.spec.control_plane_ip),
        advertise_port=plan.api_port,
        kubelet_token=credentials.token(KUBELET_CLIENT),
        kubelet_ca=str(credentials.ca),
        tokens={
            user.token: UserInfo(user.name, user.groups) for user in credentials.users.values()
        },
        node_port_range=plan.spec.node_ports,
        definitions=definitions,
        storage_roots=roots,
        admissions=admissions,
    )
    return ControlPlaneConfig(
        apiserver,
        kubeconfig(plan, credentials, CONTROLLERS),
        kubeconfig(plan, credentials, SCHEDULER),
        flannel_config(plan.spec.network),
        calico,
    )


def calico_admission(new: Obj, old: Obj | None, others: Iterable[Obj]) -> Verdict:
    """What Calico says of its resources, as the API server asks for it."""
    from agents.calico.admission import admit

    found = admit(new, old, others)
    broken = tuple((each.name, each.value, each.reason) for each in found.broken)
    return Verdict(found.unknown, broken, found.warnings)


def _etcd_relay(plan: ClusterPlan) -> Relay:
    """The way to etcd's first endpoint from inside."""
    host, _, port = plan.etcd_endpoints[0].rpartition("//")[2].rstrip("/").rpartition(":")
    return Relay(plan.spec.etcd_ip, int(port), host, int(port))


def _calico(plan: ClusterPlan, node: NodePlan) -> CalicoSettings | None:
    spec = plan.spec.network.calico
    if spec is None:
        return None
    return CalicoSettings(
        block_size=spec.block_size,
        ipip_mode=spec.ipip_mode,
        vxlan_mode=spec.vxlan_mode,
        nat_outgoing=spec.nat_outgoing,
        as_number=spec.as_number,
        mesh=spec.mesh,
        bgp_port=node.bgp_port,
        bird_ctl=plan.bird_ctl(node.spec.name),
        bfd=None if spec.bfd is None else BfdSettings(*spec.bfd),
        bmp=spec.bmp,
        mrt_messages=spec.mrt_messages,
        bird_dialect=spec.bird_dialect,
    )


def node_config(plan: ClusterPlan, node: NodePlan, credentials: Credentials) -> NodeConfig:
    relays = [
        Relay(plan.spec.control_plane_ip, plan.api_port, plan.api_host, plan.api_port),
    ]
    # An etcd outside the cluster may have no emulated address that is free.
    if plan.embedded_etcd or all(plan.spec.etcd_ip != other.ip for other in plan.spec.nodes):
        relays.append(_etcd_relay(plan))
    bridge = plan.spec.docker_bridge
    return NodeConfig(
        calico=_calico(plan, node),
        name=node.spec.name,
        ip=node.spec.ip,
        network=node.spec.network,
        gateway=node.spec.gateway,
        site=plan.spec.node_network,
        host=node.host,
        shared_host=node.shared_host,
        vxlan_port=node.vxlan_port,
        carrier_port=node.carrier_port,
        kubelet_port=node.kubelet_port,
        etcd_endpoints=plan.etcd_endpoints,
        etcd_access=plan.spec.etcd_access,
        kubeconfig=kubeconfig(plan, credentials, NODE),
        kubelet_cert=credentials.kubelet.cert,
        kubelet_key=credentials.kubelet.key,
        kubelet_token=credentials.token(KUBELET_CLIENT),
        root=plan.node_root(node.spec.name),
        control_socket=plan.socket(node.spec.name),
        pod_cidr=plan.spec.network.pod_cidr,
        cluster_dns=plan.spec.service_cidr.host(10),
        relays=tuple(relays),
        labels=node.spec.labels,
        taints=node.spec.taints,
        docker_bridge=None if bridge is None else (bridge.ip, bridge.length),
    )
