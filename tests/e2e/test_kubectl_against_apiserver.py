"""Stock kubectl 1.32 against the API server alone: every verb, and bad input's exact words."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.api_servers import KUBECTLS, api_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api_servers import World

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not KUBECTLS, reason="no kubectl on this machine"),
]

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: nginx:1.7.9
        ports: [{containerPort: 80}]
        env: [{name: A, value: b}, {name: C, value: d}]
"""


def service(name: str, node_port: int) -> str:
    spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": node_port}]}
    return json.dumps(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
    )


def pod(name: str, **spec: Any) -> str:
    spec = {"containers": [{"name": "c", "image": "nginx"}], **spec}
    meta = {"name": name, "labels": {"app": name}}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with api_server(tmp_path) as world:
        yield world


async def test_apply_creates_changes_and_prunes_fields(world: World) -> None:
    async def apply(text: str) -> str:
        return await world.ok("apply", "-f", "-", stdin=text)

    assert await apply(DEPLOYMENT) == "deployment.apps/web created\n"
    assert await apply(DEPLOYMENT) == "deployment.apps/web unchanged\n"
    changed = DEPLOYMENT.replace("1.7.9", "1.9").replace("{name: A, value: b}, ", "")
    assert await apply(changed) == "deployment.apps/web configured\n"
    container = json.loads(
        await world.ok("get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[0]}")
    )
    assert container["env"] == [{"name": "C", "value": "d"}]
    assert container["image"] == "nginx:1.9"
    assert container["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert "generation: 2" in await world.ok("get", "deploy", "web", "-o", "yaml")


async def test_diff_and_dry_run_change_nothing(world: World) -> None:
    await world.ok("apply", "-f", "-", stdin=DEPLOYMENT)
    changed = DEPLOYMENT.replace("1.7.9", "1.9")
    result = await world.kubectl("diff", "-f", "-", stdin=changed)
    assert result.code == 1
    assert "-        image: nginx:1.7.9\n+        image: nginx:1.9\n" in result.out
    await world.ok("apply", "--dry-run=server", "-f", "-", stdin=changed)
    await world.ok("delete", "deploy", "web", "--dry-run=server")
    assert "1.7.9" in await world.ok("get", "deploy", "-o", "wide")


async def test_typed_create_commands_send_protobuf(world: World) -> None:
    for command, kind in (
        ("deployment d --image=nginx --replicas=2 --port=80 -- sh -c x", "deploy/d"),
        ("namespace n", "ns/n"),
        ("configmap c --from-literal=a=b", "cm/c"),
        ("secret generic s --from-literal=a=b", "secret/s"),
        ("serviceaccount a", "sa/a"),
        ("service clusterip v --tcp=80:8080", "svc/v"),
        ("service nodeport w --tcp=80", "svc/w"),
        ("job j --image=busybox -- date", "job/j"),
        ("cronjob k --image=busybox --schedule=@hourly -- date", "cronjob/k"),
        ("quota q --hard=pods=3,cpu=1", "quota/q"),
        ("role r --verb=get --resource=pods", "role/r"),
        ("poddisruptionbudget b --selector=a=b --min-available=1", "pdb/b"),
        ("ingress i --rule=a/b=s:80", "ing/i"),
    ):
        words = command.split()
        cut = words.index("--") if "--" in words else len(words)
        dry = [*words[:cut], "--dry-run=client", "-o", "json", *words[cut:]]
        wanted = json.loads(await world.ok("create", *dry))
        await world.ok("create", *words)
        stored = json.loads(await world.ok("get", kind, "-o", "json"))
        wanted.pop("status", None)
        wanted["metadata"].pop("creationTimestamp")
        assert _within(wanted, stored), (wanted, stored)


def _within(wanted: Any, have: Any) -> bool:
    """Whether everything wanted is there; nulls and empty structs may have been defaulted."""
    if isinstance(wanted, dict):
        return isinstance(have, dict) and all(
            v in (None, {}) or _within(v, have.get(k)) for k, v in wanted.items()
        )
    if isinstance(wanted, list):
        return len(wanted) == len(have) and all(
            _within(a, b) for a, b in zip(wanted, have, strict=True)
        )
    return bool(wanted == have)


async def test_label_annotate_patch_set_edit_replace_and_rollout(world: World) -> None:
    await world.ok("create", "-f", "-", stdin=DEPLOYMENT)
    await world.ok("label", "deploy", "web", "tier=front")
    await world.ok("annotate", "deploy", "web", "note=hi")
    await world.ok("label", "deploy", "web", "app-")
    strategic = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "x:1"}]}}}}
    await world.ok("patch", "deploy", "web", "-p", json.dumps(strategic))
    json_patch = '[{"op":"replace","path":"/spec/replicas","value":7}]'
    await world.ok("patch", "deploy", "web", "--type=json", "-p", json_patch)
    await world.ok("patch", "deploy", "web", "--type=merge", "-p", '{"spec":{"paused":true}}')
    await world.ok("set", "image", "deploy/web", "c=nginx:1.25")
    await world.ok("set", "env", "deploy/web", "E=f")
    shown = json.loads(await world.ok("get", "deploy", "web", "-o", "json"))
    assert shown["metadata"]["labels"] == {"tier": "front"}
    assert shown["metadata"]["annotations"] == {"note": "hi"}
    assert (shown["spec"]["replicas"], shown["spec"]["paused"]) == (7, True)
    container = shown["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "nginx:1.25"
    assert [e["name"] for e in container["env"]] == ["A", "C", "E"]
    assert shown["metadata"]["generation"] == 6
    assert await world.ok("replace", "-f", "-", stdin=DEPLOYMENT) == (
        "deployment.apps/web replaced\n"
    )
    assert await world.fails("scale", "deploy", "web", "--replicas=2", "--current-replicas=9") == (
        "error: Expected replicas to be 9, was 3\n"
    )
    await world.ok("scale", "deploy", "web", "--replicas=2", "--current-replicas=3")
    assert await world.ok("get", "deploy", "web", "-o", "jsonpath={.spec.replicas}") == "2"


async def test_lists_select_sort_and_shape_output(world: World) -> None:
    for name in ("b", "a"):
        await world.ok("create", "-f", "-", stdin=pod(name))
    await world.ok("create", "ns", "other")
    await world.ok("create", "-n", "other", "-f", "-", stdin=pod("z"))

    async def names(*args: str) -> list[str]:
        return (await world.ok("get", "pods", "-o", "name", *args)).split()

    assert await names() == ["pod/a", "pod/b"]
    assert await names("-A") == ["pod/a", "pod/b", "pod/z"]
    assert await names("-l", "app in (a,c)") == ["pod/a"]
    assert await names("-l", "app!=a") == ["pod/b"]
    assert await names("--field-selector", "metadata.name=b") == ["pod/b"]
    assert await names("--field-selector", "status.phase!=Pending") == []
    assert await names("--chunk-size=1") == ["pod/a", "pod/b"]
    table = await world.ok("get", "pods", "--sort-by=.metadata.resourceVersion", "-L", "app")
    assert [line.split()[0] for line in table.splitlines()] == ["NAME", "b", "a"]
    assert table.splitlines()[0].split()[-1] == "APP"
    columns = "custom-columns=N:.metadata.name,I:.spec.containers[*].image"
    assert (await world.ok("get", "pods", "-o", columns)).split() == [
        "N", "I", "a", "nginx", "b", "nginx",
    ]  # fmt: skip


async def test_watch_prints_changes_as_they_come(world: World) -> None:
    await world.ok("create", "-f", "-", stdin=pod("a"))
    process = await world.spawn("get", "pods", "-w")
    assert process.stdout is not None
    lines = process.stdout
    async with asyncio.timeout(20):
        assert (await lines.readline()).split()[0] == b"NAME"
        assert (await lines.readline()).split()[:3] == [b"a", b"0/1", b"Pending"]
        status = {"status": {"phase": "Failed"}}
        await world.ok("patch", "pod", "a", "--subresource=status", "-p", json.dumps(status))
        assert (await lines.readline()).split()[2] == b"Failed"
        await world.ok("delete", "pod", "a")
        assert (await lines.readline()).split()[0] == b"a"
        process.terminate()
        await process.communicate()


async def test_delete_waits_for_a_graceful_pod(world: World) -> None:
    await world.ok("create", "-f", "-", stdin=pod("a", nodeName="node-0"))
    process = await world.spawn("delete", "pod", "a")

    async def terminating() -> None:
        while "Terminating" not in await world.ok("get", "pod", "a"):
            pass

    async with asyncio.timeout(20):
        await terminating()
        assert process.returncode is None
        await world.ok("delete", "pod", "a", "--grace-period=0", "--force")
        out, _ = await process.communicate()
    assert out == b'pod "a" deleted\n'


async def test_bad_manifests_get_the_real_words(world: World) -> None:
    async def create(text: str, *args: str) -> str:
        return await world.fails("create", "-f", "-", *args, stdin=text)

    prefix = 'Error from server (BadRequest): error when creating "STDIN": '
    cannot = 'Deployment in version "v1" cannot be handled as a Deployment: '
    assert await create(DEPLOYMENT.replace("kind: Deployment", "kind: Deploymant")) == (
        'error: resource mapping not found for name: "web" namespace: "" from "STDIN": '
        'no matches for kind "Deploymant" in version "apps/v1"\n'
        "ensure CRDs are installed first\n"
    )
    assert await create(DEPLOYMENT.replace("name: web, ", "")) == (
        'The Deployment "" is invalid: metadata.name: Required value: name or generateName is '
        "required\n"
    )
    assert await create(DEPLOYMENT.replace("replicas", "replikas")) == (
        f'{prefix}{cannot}strict decoding error: unknown field "spec.replikas"\n'
    )
    assert await create(DEPLOYMENT.replace("replicas: 3", "replicas: abc")) == (
        f"{prefix}{cannot}json: cannot unmarshal string into Go struct field "
        "DeploymentSpec.spec.replicas of type int32\n"
    )
    assert await create(DEPLOYMENT.replace("matchLabels: {app: web}", "matchLabels: {a: b}")) == (
        'The Deployment "web" is invalid: spec.template.metadata.labels: Invalid value: '
        'map[string]string{"app":"web"}: `selector` does not match template `labels`\n'
    )
    assert await create(DEPLOYMENT.replace("image: nginx:1.7.9", "")) == (
        'The Deployment "web" is invalid: spec.template.spec.containers[0].image: Required value\n'
    )
    assert await create(DEPLOYMENT, "-n", "nosuch") == (
        'Error from server (NotFound): error when creating "STDIN": namespaces "nosuch" not found\n'
    )
    assert "a lowercase RFC 1123 subdomain must consist of lower case" in await create(pod("A_b"))
    assert await create(pod("a", restartPolicy="Maybe")) == (
        'The Pod "a" is invalid: spec.restartPolicy: Unsupported value: "Maybe": '
        'supported values: "Always", "OnFailure", "Never"\n'
    )
    await world.ok("create", "-f", "-", stdin=DEPLOYMENT)
    assert await create(DEPLOYMENT) == (
        'Error from server (AlreadyExists): error when creating "STDIN": '
        'deployments.apps "web" already exists\n'
    )
    changed = DEPLOYMENT.replace("{app: web}", "{app: wob}")
    assert (await world.fails("apply", "-f", "-", stdin=changed)).endswith(
        'The Deployment "web" is invalid: spec.selector: Invalid value: v1.LabelSelector{'
        'MatchLabels:map[string]string{"app":"wob"}, '
        "MatchExpressions:[]v1.LabelSelectorRequirement(nil)}: field is immutable\n"
    )


async def test_node_ports_and_cluster_addresses_are_guarded(world: World) -> None:
    await world.ok("create", "-f", "-", stdin=service("s1", 31000))
    port = "spec.ports[0].nodePort: Invalid value: "
    assert await world.fails("create", "-f", "-", stdin=service("s2", 31000)) == (
        f'The Service "s2" is invalid: {port}31000: provided port is already allocated\n'
    )
    assert await world.fails("create", "-f", "-", stdin=service("s3", 80)) == (
        f'The Service "s3" is invalid: {port}80: provided port is not in the valid range. '
        "The range of valid ports is 30000-32767\n"
    )
    await world.ok("delete", "svc", "s1")
    await world.ok("create", "-f", "-", stdin=service("s2", 31000))
    await world.ok("patch", "svc", "s2", "-p", '{"spec":{"type":"ClusterIP"}}')
    await world.ok("create", "-f", "-", stdin=service("s4", 31000))
    taken = await world.fails("create", "service", "clusterip", "x", "--clusterip=10.96.0.1",
                              "--tcp=80")  # fmt: skip
    assert "failed to allocate IP 10.96.0.1: provided IP is already allocated" in taken
    outside = await world.fails("create", "service", "clusterip", "x", "--clusterip=10.0.0.1",
                                "--tcp=80")  # fmt: skip
    assert "The range of valid IPs is 10.96.0.0/12" in outside
    moved = '{"spec":{"clusterIP":"10.96.7.7","clusterIPs":["10.96.7.7"]}}'
    assert await world.fails("patch", "svc", "s4", "-p", moved) == (
        'The Service "s4" is invalid: spec.clusterIPs[0]: Invalid value: '
        '[]string{"10.96.7.7"}: may not change once set\n'
    )


async def test_describe_explain_wait_and_small_commands(world: World) -> None:
    await world.ok("create", "-f", "-", stdin=DEPLOYMENT)
    await world.ok("expose", "deploy", "web", "--port=80", "--target-port=8080")
    assert "Replicas:               3 desired" in await world.ok("describe", "deploy", "web")
    assert "TargetPort:               8080/TCP" in await world.ok("describe", "svc", "web")
    await world.ok("describe", "ns", "default")
    assert "FIELD: replicas <integer>" in await world.ok("explain", "deploy.spec.replicas")
    assert "deployments" in await world.ok("api-resources")
    assert "apps/v1" in await world.ok("api-versions")
    assert await world.ok("auth", "can-i", "create", "pods") == "yes\n"
    assert "kubernetes-admin" in await world.ok("auth", "whoami")
    assert "is running at" in await world.ok("cluster-info")
    waiting = await world.spawn("wait", "--for=condition=Available", "deploy/web", "--timeout=20s")
    condition = {"type": "Available", "status": "True"}
    status = json.dumps({"status": {"conditions": [condition]}})
    await world.ok("patch", "deploy", "web", "--subresource=status", "-p", status)
    async with asyncio.timeout(20):
        out, _ = await waiting.communicate()
    assert out == b"deployment.apps/web condition met\n"
    await world.ok("autoscale", "deploy", "web", "--max=5", "--cpu-percent=50")
    assert "cpu: <unknown>/50%" in await world.ok("get", "hpa")
    assert await world.ok("get", "--raw", "/readyz") == "ok"
    assert await world.fails("get", "nosuch") == (
        'error: the server doesn\'t have a resource type "nosuch"\n'
    )
    assert await world.fails("get", "pods", "x") == (
        'Error from server (NotFound): pods "x" not found\n'
    )
    assert await world.fails("logs", "x") == (
        'error: error from server (NotFound): pods "x" not found in namespace "default"\n'
    )


async def test_custom_resources_are_served_like_built_in_ones(world: World) -> None:
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "pools.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Cluster",
            "names": {"plural": "pools", "kind": "Pool", "shortNames": ["pl"]},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object"}},
                    "additionalPrinterColumns": [
                        {"name": "CIDR", "type": "string", "jsonPath": ".spec.cidr"}
                    ],
                }
            ],
        },
    }
    await world.ok("apply", "-f", "-", stdin=json.dumps(definition))
    await world.ok("wait", "--for=condition=established", "crd/pools.example.com")
    pool = {
        "apiVersion": "example.com/v1",
        "kind": "Pool",
        "metadata": {"name": "p"},
        "spec": {"cidr": "10.0.0.0/8"},
    }
    await world.ok("apply", "-f", "-", stdin=json.dumps(pool))
    assert (await world.ok("get", "pl")).split() == ["NAME", "CIDR", "p", "10.0.0.0/8"]
    await world.ok("delete", "crd", "pools.example.com")
    assert "doesn't have a resource type" in await world.fails(
        "get", "pl", "--cache-dir", str(world.folder / "fresh")
    )


@pytest.mark.parametrize("client", [c for c in ("bundled", "1.28", "1.30") if c in KUBECTLS])
async def test_other_kubectls_create_apply_and_delete(world: World, client: str) -> None:
    world.kubectl_path = KUBECTLS[client]
    await world.ok("create", "deployment", "d", "--image=nginx")
    await world.ok("apply", "-f", "-", stdin=DEPLOYMENT)
    await world.ok("apply", "-f", "-", stdin=DEPLOYMENT.replace("1.7.9", "1.9"))
    await world.ok("expose", "deploy", "web", "--port=80", "--type=NodePort")
    assert "nginx:1.9" in await world.ok("get", "deploy,svc", "-o", "wide")
    assert "deployment.apps/web" in await world.ok("get", "all")
    await world.ok("explain", "deploy.spec")
    await world.ok("delete", "deploy,svc", "web")


async def test_server_side_apply_owns_removes_and_conflicts(world: World) -> None:
    async def apply(text: str, *args: str) -> str:
        return await world.ok("apply", "--server-side", *args, "-f", "-", stdin=text)

    assert await apply(DEPLOYMENT) == "deployment.apps/web serverside-applied\n"
    await world.ok("scale", "deploy", "web", "--replicas=5")
    assert (
        'Apply failed with 1 conflict: conflict with "kubectl" with subresource "scale" '
        "using apps/v1: .spec.replicas"
    ) in await world.fails("apply", "--server-side", "-f", "-", stdin=DEPLOYMENT)
    without = DEPLOYMENT.replace("{name: A, value: b}, ", "")
    await apply(without, "--force-conflicts")
    path = "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].env[*].name}"
    assert await world.ok("get", "deploy", "web", "-o", path) == "3 C"
