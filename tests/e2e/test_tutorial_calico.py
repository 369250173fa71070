"""The first half of the Calico tutorial of 2018, typed on the preset's two machines.

"Routing Traffic with Calico" and "Routing and Load Balancing with Services"; what differs from the
tutorial's text is what must: pod names, times, and addresses that are drawn.
"""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import Podwire, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

NODES = ("kube-0", "kube-1")
# The two tables as the tutorial prints them; it lost the blanks at the ends of some lines.
ROUTES_OF_KUBE_0 = (
    "default via 10.10.64.1 dev eth0 ",
    "10.10.64.0/20 dev eth0  proto kernel  scope link  src 10.10.68.222 ",
    "172.17.0.0/16 dev docker0  proto kernel  scope link  src 172.17.0.1 ",
    "192.168.126.64/26 via 10.10.95.205 dev tunl0  proto bird onlink ",
    "blackhole 192.168.145.64/26  proto bird ",
    "192.168.145.65 dev cali6edd91665ff  scope link ",
    "192.168.145.66 dev calia9ee759be59  scope link",
)
ROUTES_OF_KUBE_1 = [
    "default via 10.10.80.1 dev eth0",
    "10.10.80.0/20 dev eth0  proto kernel  scope link  src 10.10.95.205",
    "172.17.0.0/16 dev docker0  proto kernel  scope link  src 172.17.0.1",
    "blackhole 192.168.126.64/26  proto bird",
    "192.168.126.78 dev calib0aa6a43271  scope link",
    "192.168.126.79 dev cali3489915b309  scope link",
    "192.168.126.80 dev cali2d894f7a3f6  scope link",
    "192.168.145.64/26 via 10.10.68.222 dev tunl0  proto bird onlink",
]
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx-deployment}
spec:
  replicas: 3
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      containers:
      - {name: nginx, image: "nginx:1.7.9"}
"""
# The tutorial's files, letter by letter.
CLUSTER_YAML = """\
apiVersion: v1
kind: Service
metadata:
  name: cluster-demo
spec:
  selector:
    app: nginx
  ports:
  - port: 8080
    targetPort: 80
"""
NODEPORT_YAML = """\
apiVersion: v1
kind: Service
metadata:
  name: nodeport-demo
spec:
  type: NodePort
  selector:
      app: nginx
  ports:
  - port: 8080
    targetPort: 80
"""


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Podwire]:
    podwire = Podwire(tmp_path_factory.mktemp("calico"), f"calico-{worker_id}")
    podwire.podwire("up", "--preset", "calico", "--detach")
    podwire.env["KUBECONFIG"] = podwire.podwire("kubeconfig").out.strip()
    try:
        yield podwire
    finally:
        podwire.podwire("down")


def pod(name: str, node: str, namespace: str = "default") -> str:
    return (
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}}}, "
        f"spec: {{nodeName: {node}, containers: [{{name: c, image: 'nginx:1.7.9'}}]}}}}"
    )


def create(cluster: Podwire, name: str, node: str, namespace: str = "default") -> str:
    """Make a pod and return its address; the next one gets the next."""
    cluster.kubectl("create", "-f", "-", stdin=pod(name, node, namespace))
    return str(
        wait_for(
            f"pod {name} has an address",
            lambda: cluster.get("pod", name, "-n", namespace)["status"].get("podIP"),
        )
    )


def test_the_routing_tables_are_the_tutorial_s_to_the_byte(cluster: Podwire) -> None:
    earlier = "\n---\n".join(pod(f"earlier-{number}", "kube-1") for number in range(13))
    cluster.kubectl("create", "-f", "-", stdin=earlier)
    held = {
        str(wait_for("an address", lambda name=f"earlier-{number}": ip_of(cluster, name)))
        for number in range(13)
    }
    assert held == {f"192.168.126.{last}" for last in range(65, 78)}
    cluster.kubectl("delete", "pods", "--all", "--now")
    assert create(cluster, "coredns-78fcdf6894-w97xx", "kube-0", "kube-system") == "192.168.145.65"
    assert create(cluster, "coredns-78fcdf6894-44tfj", "kube-0", "kube-system") == "192.168.145.66"
    for suffix, last in (("tnsdq", 78), ("tmqqn", 79), ("cg4mk", 80)):
        address = create(cluster, f"nginx-deployment-69df458bc5-{suffix}", "kube-1")
        assert address == f"192.168.126.{last}"
    lines = wait_for(
        "kube-0 has the tutorial's routes",
        lambda: has_lines(cluster, "kube-0", len(ROUTES_OF_KUBE_0)),
    )
    wanted = list(ROUTES_OF_KUBE_0)
    assert lines[:-1] == wanted[:-1]
    assert lines[-1].rstrip() == wanted[-1]
    lines = has_lines(cluster, "kube-1", len(ROUTES_OF_KUBE_1))
    assert [line.rstrip() for line in lines] == ROUTES_OF_KUBE_1
    assert all(line.endswith(" ") for line in lines), "the real ip ends every line with a blank"
    modern = cluster.node("kube-1", "ip", "route").out.splitlines()
    assert "192.168.145.64/26 via 10.10.68.222 dev tunl0 proto bird onlink " in modern
    assert "192.168.126.80 dev cali2d894f7a3f6 scope link " in modern


def ip_of(cluster: Podwire, name: str) -> str | None:
    found: str | None = cluster.get("pod", name)["status"].get("podIP")
    return found


def has_lines(cluster: Podwire, node: str, count: int) -> list[str]:
    """The node's routes in the old style once there are so many of them, else nothing."""
    done = cluster.podwire("exec", "--style", "2018", node, "--", "ip", "route")
    lines = done.out.splitlines()
    return lines if len(lines) == count else []


def test_routing_traffic_and_services_step_by_step(cluster: Podwire) -> None:
    # The last exercise, after which nginx's image is on the machine.
    create(cluster, "last-exercise", "kube-1")
    cluster.kubectl("delete", "pod", "last-exercise", "--now")

    # Routing Traffic with Calico
    files = {"deployment": DEPLOYMENT, "cluster": CLUSTER_YAML, "nodeport": NODEPORT_YAML}
    for name, text in files.items():
        (cluster.home / f"{name}.yaml").write_text(text)

    def create_from(file: str) -> str:
        return cluster.kubectl("create", "-f", str(cluster.home / file)).out

    assert create_from("deployment.yaml") == "deployment.apps/nginx-deployment created\n"
    cluster.kubectl("rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
    assert cluster.kubectl("get", "pods").out.count("1/1     Running") == 3
    pods: list[dict[str, Any]] = cluster.get("pods")["items"]
    name, address = pods[0]["metadata"]["name"], pods[0]["status"]["podIP"]
    described = cluster.kubectl("describe", "pods", name).out
    for line in (
        rf"Name:\s+{name}",
        r"Node:\s+kube-1/10\.10\.95\.205",
        r"Labels:\s+app=nginx",
        rf"IP:\s+{re.escape(address)}",
        r"Controlled By:\s+ReplicaSet/nginx-deployment-",
        r"Image:\s+nginx:1\.7\.9",
        r"Annotations:\s+cni\.projectcalico\.org/containerID: ",
        rf"cni\.projectcalico\.org/podIP: {re.escape(address)}/32",
    ):
        assert re.search(line, described), f"{line} in:\n{described}"
    events = re.findall(r"Normal\s+(\w+)", described)
    assert events == ["Scheduled", "Pulled", "Created", "Started"]
    assert address.startswith("192.168.126.")
    routes = cluster.node("kube-0", "ip", "route").out
    assert "192.168.126.64/26 via 10.10.95.205 dev tunl0 proto bird onlink" in routes
    assert "Welcome to nginx!" in cluster.node("kube-0", "curl", "-s", address).out
    routes = cluster.node("kube-1", "ip", "route").out
    assert re.search(rf"^{re.escape(address)} dev cali[0-9a-f]{{11}} scope link", routes, re.M)
    assert "Welcome to nginx!" in cluster.node("kube-1", "curl", "-s", f"{address}:80").out
    log = cluster.kubectl("logs", name).out.splitlines()
    # From another node by its tunnel's address, from the pod's own node by that node's.
    assert [line.split()[0] for line in log] == ["192.168.145.64", "10.10.95.205"]
    assert all('"GET / HTTP/1.1" 200 612 "-" "curl/' in line for line in log)

    # Routing and Load Balancing with Services
    assert create_from("cluster.yaml") == "service/cluster-demo created\n"
    services = cluster.kubectl("get", "services").out
    head = ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    assert services.splitlines()[0].split() == head
    found = re.search(r"^cluster-demo\s+ClusterIP\s+(\S+)\s+<none>\s+8080/TCP", services, re.M)
    assert found, services
    assert re.search(r"^kubernetes\s+ClusterIP\s+10\.96\.0\.1\s+<none>\s+443/TCP", services, re.M)
    cluster_ip = found.group(1)
    assert ip_address(cluster_ip) in ip_network("10.96.0.0/12")
    for node in NODES:
        page = wait_for(
            f"the service answers {node}",
            lambda node=node: (
                cluster.node(node, "curl", "-s", "-m", "2", f"{cluster_ip}:8080", check=False).out
            ),
        )
        assert "Welcome to nginx!" in page
    assert create_from("nodeport.yaml") == "service/nodeport-demo created\n"
    described = cluster.kubectl("describe", "service", "nodeport-demo").out
    found = re.search(r"NodePort:\s+<unset>\s+(\d+)/TCP", described)
    assert found, described
    port = int(found.group(1))
    assert 30000 <= port <= 32767
    for node in cluster.status()["nodes"]:
        # Any machine answers, also the one without a pod.
        url = f"http://{node['underlay']}:{port}"
        page = wait_for(
            f"{url} answers",
            lambda url=url: cluster.run(["curl", "-s", "-m", "2", url], check=False).out,
        )
        assert "Welcome to nginx!" in page
    for kind, name in (
        ("deployment", "nginx-deployment"),
        ("service", "cluster-demo"),
        ("service", "nodeport-demo"),
    ):
        assert f'"{name}" deleted' in cluster.kubectl("delete", kind, name).out
    wait_for(
        "the pods' routes are gone",
        lambda: "cali" not in cluster.node("kube-1", "ip", "route").out,
    )
