"""A day with stock kubectl: workloads come, change, are looked into and go, on real nodes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.harness import Done, Podwire

pytestmark = pytest.mark.e2e

# The stock client of the machine and the newest from the package index speak different dialects.
_BUNDLED = str(Path(sys.executable).parent / "kubectl")
CLIENTS = [
    path
    for path in dict.fromkeys((shutil.which("kubectl", path=os.defpath), _BUNDLED))
    if path and Path(path).exists()
]
both = pytest.mark.parametrize("client", CLIENTS, ids=["system", "newest"][: len(CLIENTS)])

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, labels: {app: app, extra: x}}
spec:
  replicas: 2
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: nginx:1.7.9
        ports: [{containerPort: 80}]
        env: [{name: A, value: b}]
"""
TOOLBOX = """
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {run: box}, annotations: {note: hi}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'echo started; sleep 3600']
    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['run']"}}}
    - {name: HELLO, value: "from $(POD)"}
"""


def run(cluster: Podwire, client: str, *argv: str, check: bool = True, stdin: str = "") -> Done:
    """One kubectl command with the caches of its own client."""
    cache = f"{cluster.home}/cache-{CLIENTS.index(client)}"
    return cluster.run([client, "--cache-dir", cache, *argv], check=check, stdin=stdin)


@pytest.fixture(scope="module")
def box(cluster: Podwire) -> Podwire:
    """The cluster with a busybox pod that runs."""
    cluster.kubectl("create", "deployment", "web", "--image=nginx", "--replicas=1")
    cluster.kubectl("expose", "deployment", "web", "--port=80")
    cluster.kubectl("apply", "-f", "-", stdin=TOOLBOX)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/box", "--timeout=20s")
    cluster.kubectl("rollout", "status", "deploy/web", "--timeout=20s")
    return cluster


def test_a_deployment_lives_through_its_rollouts(cluster: Podwire) -> None:
    def template() -> dict[str, Any]:
        found: dict[str, Any] = cluster.get("deploy", "app")["spec"]["template"]["spec"]
        return found["containers"][0]

    def settle() -> str:
        return cluster.kubectl("rollout", "status", "deploy/app", "--timeout=20s").out

    created = cluster.kubectl("apply", "-f", "-", stdin=DEPLOYMENT).out
    assert created == "deployment.apps/app created\n"
    settle()
    again = cluster.kubectl("apply", "-f", "-", stdin=DEPLOYMENT).out
    assert again == "deployment.apps/app unchanged\n"
    newer = DEPLOYMENT.replace("1.7.9", "1.9.1")
    diff = cluster.kubectl("diff", "-f", "-", stdin=newer, check=False)
    assert diff.code == 1
    assert re.search(r"-\s+image: nginx:1.7.9\n\+\s+image: nginx:1.9.1\n", diff.out)
    cluster.kubectl("apply", "-f", "-", stdin=newer)
    assert 'deployment "app" successfully rolled out' in settle()
    assert template()["image"] == "nginx:1.9.1"
    # What leaves the manifest leaves the object.
    less = newer.replace(", extra: x", "").replace("        env: [{name: A, value: b}]\n", "")
    cluster.kubectl("apply", "-f", "-", stdin=less)
    settle()
    assert "env" not in template()
    assert cluster.get("deploy", "app")["metadata"]["labels"] == {"app": "app"}
    cluster.kubectl("rollout", "undo", "deploy/app", "--to-revision=1")
    settle()
    assert template()["image"] == "nginx:1.7.9"
    history = cluster.kubectl("rollout", "history", "deploy/app").out
    assert re.findall(r"^(\d+)", history, re.M) == ["2", "3", "4"]
    cluster.kubectl("rollout", "pause", "deploy/app")
    cluster.kubectl("set", "image", "deploy/app", "c=nginx:1.25")
    stuck = cluster.kubectl("rollout", "status", "deploy/app", "--timeout=100ms", check=False)
    assert (stuck.code, stuck.err) == (1, "error: timed out waiting for the condition\n")
    cluster.kubectl("rollout", "resume", "deploy/app")
    settle()
    cluster.kubectl("scale", "deploy/app", "--replicas=3")
    settle()
    images = cluster.kubectl(
        "get", "pods", "-l", "app=app", "--field-selector=status.phase=Running",
        "-o", "jsonpath={.items[*].spec.containers[*].image}",
    ).out  # fmt: skip
    assert set(images.split()) == {"nginx:1.25"}
    out = cluster.kubectl("delete", "deploy", "app").out
    assert re.match(r'deployment.apps "app" deleted', out)
    wait_for("no pods of app", lambda: not cluster.get("pods", "-l", "app=app")["items"])


@both
def test_describe_pod_tells_its_story_in_order(box: Podwire, client: str) -> None:
    out = run(box, client, "describe", "pod", "box").out
    for line in (
        r"^Node:             node-\d/172\.17\.4\.20\d$",
        r"^Annotations:      note: hi$",
        r"^Status:           Running$",
        r"^    Container ID:  containerd://[0-9a-f]{64}$",
        r"^    State:          Running$",
        r"^      POD:    box \(v1:metadata\.name\)$",
        r"^QoS Class:                   BestEffort$|^QoS Class:  +BestEffort$",
    ):
        assert re.search(line, out, re.M), f"{line}\n{out}"
    events = re.findall(r"^  Normal  (\w+) .* (default-scheduler|kubelet) ", out, re.M)
    assert events == [
        ("Scheduled", "default-scheduler"),
        *((reason, "kubelet") for reason in ("Pulling", "Pulled", "Created", "Started")),
    ]


@both
def test_exec_carries_input_output_and_exit_codes(box: Podwire, client: str) -> None:
    assert run(box, client, "exec", "box", "--", "hostname").out == "box\n"
    assert run(box, client, "exec", "-i", "box", "--", "cat", stdin="typed\n").out == "typed\n"
    done = run(box, client, "exec", "box", "--", "sh", "-c", "echo bad >&2; exit 3", check=False)
    assert (done.code, done.out) == (3, "")
    assert done.err == "bad\ncommand terminated with exit code 3\n"
    missing = run(box, client, "exec", "box", "--", "nosuch", check=False)
    assert missing.code != 0
    assert 'exec: "nosuch": executable file not found in $PATH' in missing.err


def test_a_pod_knows_itself_and_its_services(box: Podwire) -> None:
    env = dict(
        line.split("=", 1) for line in box.kubectl("exec", "box", "--", "env").out.splitlines()
    )
    pod = box.get("pod", "box")
    assert env["POD"] == env["HOSTNAME"] == env["LABEL"] == "box"
    assert env["HELLO"] == "from box"
    assert env["NODE"] == pod["spec"]["nodeName"]
    assert env["KUBERNETES_SERVICE_HOST"] == "10.3.0.1"
    assert env["WEB_SERVICE_HOST"] == box.get("svc", "web")["spec"]["clusterIP"]
    hosts = box.kubectl("exec", "box", "--", "cat", "/etc/hosts").out
    assert f"{pod['status']['podIP']}\tbox\n" in hosts


def test_a_pod_reaches_the_api_server_through_its_service(box: Podwire) -> None:
    out = box.kubectl("exec", "box", "--", "curl", "-sk", "https://10.3.0.1/version").out
    assert json.loads(out)["gitVersion"].startswith("v1.")


def test_a_pod_with_a_token_is_its_service_account(box: Podwire) -> None:
    token = box.kubectl("create", "token", "default").out.strip()
    url = "https://10.3.0.1/apis/authentication.k8s.io/v1/selfsubjectreviews"
    out = box.kubectl(
        "exec", "box", "--", "curl", "-sk", "-X", "POST", "-H", f"Authorization: Bearer {token}",
        "-H", "Content-Type: application/json", "-d", "{}", url,
    ).out  # fmt: skip
    user = json.loads(out)["status"]["userInfo"]
    assert user["username"] == "system:serviceaccount:default:default"


@both
def test_a_one_shot_pod_prints_and_is_gone(box: Podwire, client: str) -> None:
    name = f"one{CLIENTS.index(client)}"
    done = run(
        box, client, "run", name, "--image=busybox", "--restart=Never", "--rm", "-i", "-q", "--",
        "cat", stdin="through the pod\n",
    )  # fmt: skip
    assert "through the pod\n" in done.out
    assert box.kubectl("get", "pod", name, check=False).code == 1


def test_a_terminal_session_through_a_pty(box: Podwire) -> None:
    if shutil.which("script") is None:
        pytest.skip("script is not installed")
    argv = ["script", "-qec", f"{CLIENTS[-1]} exec -it box -- sh", "/dev/null"]
    done = box.run(argv, stdin="hostname\nexit 4\n", check=False)
    assert done.code == 4
    assert done.out.startswith("hostname\n"), "the terminal echoes"
    assert "\nbox\n/ # " in done.out


@both
def test_files_are_copied_both_ways(box: Podwire, client: str, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("content\n")
    run(box, client, "cp", str(tmp_path / "tree"), "box:/root/")
    out = box.kubectl("exec", "box", "--", "cat", "/root/tree/sub/file").out
    assert out == "content\n"
    run(box, client, "cp", "box:/root/tree", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/file").read_text() == "content\n"


@contextlib.contextmanager
def forwarding(cluster: Podwire, client: str, what: str, port: int) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()[1]
    argv = [client, "port-forward", "--address=127.0.0.1", what, f"{local}:{port}"]
    process = subprocess.Popen(argv, env=cluster.env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Forwarding from 127.0.0.1:{local} -> 80\n"
        yield local
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("websockets", ["true", "false"])
@both
def test_port_forward_reaches_into_a_pod(
    box: Podwire, client: str, websockets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without them kubectl speaks SPDY on the bare connection, as all did up to 1.30.
    monkeypatch.setitem(box.env, "KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
    with forwarding(box, client, "svc/web", 80) as port:
        for _ in range(2):
            page = box.run(["curl", "-sS", "-m", "5", f"http://127.0.0.1:{port}/"]).out
            assert "<title>Welcome to nginx!</title>" in page


def test_the_api_server_proxies_to_services_pods_and_nodes(box: Podwire) -> None:
    base = "/api/v1/namespaces/default"
    pod = box.get("pods", "-l", "app=web")["items"][0]["metadata"]["name"]
    for path in (f"{base}/services/web/proxy/", f"{base}/pods/http:{pod}:80/proxy/"):
        assert "<title>Welcome to nginx!</title>" in box.kubectl("get", "--raw", path).out
    assert box.kubectl("get", "--raw", "/api/v1/nodes/node-0/proxy/healthz").out == "ok"
    refused = box.kubectl("get", "--raw", f"{base}/services/web:9/proxy/", check=False)
    assert 'no service port "9" found for service "web"' in refused.err


@both
def test_logs_of_the_present_and_of_the_past(box: Podwire, client: str) -> None:
    assert run(box, client, "logs", "box", "--tail=1").out == "started\n"
    stamped = run(box, client, "logs", "box", "--timestamps").out
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z started\n", stamped)
    name = f"crash{CLIENTS.index(client)}"
    run(box, client, "run", name, "--image=busybox", "--", "sh", "-c", "echo dying; exit 2")
    wait_for(
        "the first restart",
        lambda: "dying" in run(box, client, "logs", name, "--previous", check=False).out,
    )
    wait_for("a crash loop", lambda: "CrashLoopBackOff" in run(box, client, "get", "po", name).out)
    run(box, client, "delete", "pod", name, "--force", "--grace-period=0")


def test_force_deletes_at_once_and_a_namespace_takes_its_contents(box: Podwire) -> None:
    box.kubectl("create", "ns", "gone")
    box.kubectl("-n", "gone", "create", "deployment", "x", "--image=nginx", "--replicas=2")
    box.kubectl("-n", "gone", "expose", "deployment", "x", "--port=80")
    stubborn = ("run", "stubborn", "-n", "gone", "--image=busybox", "--", "sleep", "3600")
    box.kubectl(*stubborn)
    box.kubectl("-n", "gone", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=20s")
    done = box.kubectl("-n", "gone", "delete", "pod", "stubborn", "--force", "--grace-period=0")
    assert re.match(r'pod "stubborn" force deleted', done.out)
    assert box.kubectl("delete", "ns", "gone").out == 'namespace "gone" deleted\n'
    assert box.kubectl("get", "all", "-n", "gone").err == "No resources found in gone namespace.\n"


def test_drain_empties_a_node(box: Podwire) -> None:
    node = box.get("pods", "-l", "app=web")["items"][0]["spec"]["nodeName"]
    refused = box.kubectl("drain", node, check=False)
    if box.get("pod", "box")["spec"]["nodeName"] == node:
        assert "(use --force to override): default/box" in refused.err
    box.kubectl("drain", node, "--force", "--ignore-daemonsets", "--delete-emptydir-data")
    row = box.kubectl("get", "node", node, "--no-headers").out
    assert row.split()[1:3] == ["Ready,SchedulingDisabled", "<none>"]
    left = box.get("pods", "-A", f"--field-selector=spec.nodeName={node}")["items"]
    assert left == []
    box.kubectl("rollout", "status", "deploy/web", "--timeout=20s")
    box.kubectl("uncordon", node)


def test_a_malformed_pod_is_refused_with_the_real_words(cluster: Podwire) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "odd"},
        "spec": {
            "containers": [{"name": "c", "image": "nginx", "livenessProbe": {"tcpSocket": {}}}]
        },
    }
    done = cluster.kubectl(
        "create", "--validate=false", "-f", "-", stdin=json.dumps(pod), check=False
    )
    assert done.err == (
        'The Pod "odd" is invalid: spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: '
        "0: must be between 1 and 65535, inclusive\n"
    )


def test_a_pod_needs_its_service_account_and_its_priority_class(cluster: Podwire) -> None:
    def refused(field: str) -> str:
        spec = {field: "nope", "containers": [{"name": "c", "image": "nginx"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
        return cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod), check=False).err

    assert 'serviceaccount "nope" not found' in refused("serviceAccountName")
    assert "no PriorityClass with name nope was found" in refused("priorityClassName")


def test_what_is_not_there_says_so(cluster: Podwire) -> None:
    assert cluster.kubectl("top", "nodes", check=False).err == "error: Metrics API not available\n"
    assert cluster.kubectl("get", "pod", "nosuch", check=False).err == (
        'Error from server (NotFound): pods "nosuch" not found\n'
    )
    assert (
        'doesn\'t have a resource type "nosuch"'
        in cluster.kubectl("get", "nosuch", check=False).err
    )
