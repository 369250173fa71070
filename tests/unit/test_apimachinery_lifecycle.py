"""Creating, changing and deleting objects: what the server adds, keeps and refuses."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from emulator.apimachinery import lifecycle
from emulator.apimachinery.convert import from_storage, to_storage
from emulator.apimachinery.lifecycle import DeleteOptions, plan_delete
from emulator.apimachinery.objects import copy_json
from emulator.apimachinery.resources import Registry, ResourceType
from emulator.apimachinery.status import StatusError

REGISTRY = Registry()
NOW = 1_000_000.0
PODS = REGISTRY.get("", "v1", "pods")
MAPS = REGISTRY.get("", "v1", "configmaps")
SERVICES = REGISTRY.get("", "v1", "services")
DEPLOYMENTS = REGISTRY.get("apps", "v1", "deployments")


def created(resource: ResourceType, obj: dict[str, Any]) -> dict[str, Any]:
    out = copy_json(obj)
    lifecycle.prepare_create(resource, out, namespace="default", now=NOW, rng=random.Random(1))
    out["metadata"]["resourceVersion"] = "7"
    found: dict[str, Any] = out
    return found


def refused(resource: ResourceType, obj: dict[str, Any]) -> str:
    with pytest.raises(StatusError) as caught:
        created(resource, obj)
    return caught.value.message


def pod(**spec: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "c", "image": "i"}], **spec}
    return {"metadata": {"name": "p"}, "spec": spec}


def deployment(**spec: Any) -> dict[str, Any]:
    labels = {"app": "w"}
    template = {"metadata": {"labels": labels}, "spec": pod()["spec"]}
    base = {"selector": {"matchLabels": labels}, "template": template}
    return {"metadata": {"name": "d"}, "spec": {**base, **spec}}


def service(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], **spec}}


def test_names_are_generated_and_identity_is_the_servers() -> None:
    given = {
        "metadata": {
            "generateName": "web-",
            "uid": "mine",
            "generation": 9,
            "creationTimestamp": None,
            "selfLink": "/x",
        }
    }
    meta = created(MAPS, given)["metadata"]
    assert re.fullmatch(r"web-[bcdfghjklmnpqrstvwxz2456789]{5}", meta["name"])
    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-.{12}", meta["uid"]
    )
    assert meta["creationTimestamp"] == "1970-01-12T13:46:40Z"
    assert "generation" not in meta
    assert "selfLink" not in meta


def test_pods_and_deployments_get_their_defaults() -> None:
    made = created(PODS, pod())
    container = made["spec"]["containers"][0]
    assert container["imagePullPolicy"] == "Always"
    assert made["spec"]["terminationGracePeriodSeconds"] == 30
    assert [t["tolerationSeconds"] for t in made["spec"]["tolerations"]] == [300, 300]
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    tagged = created(PODS, pod(containers=[{"name": "c", "image": "host:5000/i:1.2"}]))
    assert tagged["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    made = created(DEPLOYMENTS, deployment())
    assert made["metadata"]["generation"] == 1
    assert made["spec"]["replicas"] == 1
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": "25%", "maxSurge": "25%"}


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (pod(containers=[]), "spec.containers: Required value"),
        (
            pod(containers=[{"name": "c"}]),
            "spec.containers[0].image: Required value",
        ),
        (
            pod(containers=[{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]),
            'spec.containers[1].name: Duplicate value: "c"',
        ),
        (
            pod(containers=[{"name": "c", "image": "i", "ports": [{"containerPort": 70000}]}]),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: "
            "must be between 1 and 65535, inclusive",
        ),
        (
            pod(containers=[{"name": "c", "image": "i", "volumeMounts": [
                {"name": "v", "mountPath": "/x"}]}]),
            'spec.containers[0].volumeMounts[0].name: Not found: "v"',
        ),
        (
            pod(containers=[{"name": "c", "image": "i", "resources": {
                "limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}]),
            'spec.containers[0].resources.requests: Invalid value: "2": '
            "must be less than or equal to cpu limit of 1",
        ),
        (pod(dnsPolicy="X"), 'spec.dnsPolicy: Unsupported value: "X"'),
    ],
)  # fmt: skip
def test_bad_pods(obj: dict[str, Any], words: str) -> None:
    assert f'Pod "p" is invalid: {words}' in refused(PODS, obj)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"ports": []}, "spec.ports: Required value"),
        ({"type": "Foo"}, 'spec.type: Unsupported value: "Foo": supported values: "ClusterIP", '
         '"ExternalName", "LoadBalancer", "NodePort"'),
        ({"ports": [{"port": 80}, {"port": 81}]},
         "[spec.ports[0].name: Required value, spec.ports[1].name: Required value]"),
        ({"ports": [{"port": 80, "nodePort": 30000}]},
         "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"),
        ({"type": "NodePort", "clusterIP": "None"},
         "may not be set to 'None' for NodePort services"),
        ({"clusterIP": "1.2.3"}, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        ({"type": "ExternalName", "ports": []}, "spec.externalName: Required value"),
        ({"sessionAffinity": "X"},
         'spec.sessionAffinity: Unsupported value: "X": supported values: "ClientIP", "None"'),
    ],
)  # fmt: skip
def test_bad_services(spec: dict[str, Any], words: str) -> None:
    assert words in refused(SERVICES, service(**spec))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"replicas": -1},
         "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        ({"selector": None},
         '[spec.selector: Required value, spec.template.metadata.labels: Invalid value: '
         'map[string]string{"app":"w"}: `selector` does not match template `labels`]'),
        ({"selector": {}}, "empty selector is invalid for deployment"),
        ({"strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}},
         "may not be specified when strategy `type` is 'Recreate'"),
        ({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}},
         "may not be 0 when `maxSurge` is 0"),
    ],
)  # fmt: skip
def test_bad_deployments(spec: dict[str, Any], words: str) -> None:
    assert words in refused(DEPLOYMENTS, deployment(**spec))


def test_names_and_labels_are_checked() -> None:
    assert "metadata.name: Required value" in refused(MAPS, {"metadata": {}})
    bad = {"metadata": {"name": "s_1"}, "spec": {"ports": [{"port": 1}]}}
    assert "a DNS-1035 label must consist of lower case" in refused(SERVICES, bad)
    label = {"metadata": {"name": "a", "labels": {"x": "not ok"}}}
    assert 'metadata.labels: Invalid value: "not ok": a valid label' in refused(MAPS, label)
    other = {"metadata": {"name": "a", "namespace": "b"}}
    assert "does not match the namespace sent on the request" in refused(MAPS, other)


def test_an_update_counts_generations_only_for_intent() -> None:
    old = created(DEPLOYMENTS, deployment())
    new = copy_json(old)
    new["metadata"]["labels"] = {"a": "b"}
    new["status"] = {"replicas": 5}
    out = lifecycle.prepare_update(DEPLOYMENTS, new, old)
    assert out["metadata"]["generation"] == 1
    assert out["status"] == {}
    new["spec"]["replicas"] = 4
    assert lifecycle.prepare_update(DEPLOYMENTS, new, old)["metadata"]["generation"] == 2
    out = lifecycle.prepare_update(DEPLOYMENTS, new, old, subresource="status")
    assert (out["status"], out["spec"]["replicas"]) == ({"replicas": 5}, 1)


def test_most_of_a_pods_spec_is_fixed() -> None:
    old = created(PODS, pod())
    new = copy_json(old)
    new["spec"]["containers"][0]["image"] = "j"
    lifecycle.prepare_update(PODS, new, old)
    new["spec"]["restartPolicy"] = "Never"
    with pytest.raises(StatusError, match="pod updates may not change fields other than"):
        lifecycle.prepare_update(PODS, new, old)


def test_a_service_keeps_its_address_and_ports_when_the_update_leaves_them_out() -> None:
    old = created(SERVICES, service(type="NodePort"))
    old["spec"] |= {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}
    old["spec"]["ports"][0]["nodePort"] = 31000
    out = lifecycle.prepare_update(SERVICES, service(type="NodePort"), old)
    assert out["spec"]["clusterIPs"] == ["10.0.0.1"]
    assert out["spec"]["ports"][0]["nodePort"] == 31000
    plain = copy_json(old)
    plain["spec"]["type"] = "ClusterIP"
    out = lifecycle.prepare_update(SERVICES, plain, old)
    assert "nodePort" not in out["spec"]["ports"][0]


def test_deletion_waits_for_grace_and_finalizers() -> None:
    waiting = created(PODS, pod())
    assert plan_delete(PODS, waiting, DeleteOptions(), NOW).remove
    bound = created(PODS, pod(nodeName="n"))
    begun = plan_delete(PODS, bound, DeleteOptions(), NOW).obj
    assert begun is not None
    assert begun["metadata"]["deletionTimestamp"] == "1970-01-12T13:47:10Z"
    assert begun["metadata"]["deletionGracePeriodSeconds"] == 30
    assert plan_delete(PODS, begun, DeleteOptions(), NOW).obj is None
    shorter = plan_delete(PODS, begun, DeleteOptions(grace_s=5), NOW).obj
    assert shorter is not None
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    assert plan_delete(PODS, begun, DeleteOptions(grace_s=0), NOW).remove
    kept = created(DEPLOYMENTS, deployment())
    plan = plan_delete(DEPLOYMENTS, kept, DeleteOptions(policy="Foreground"), NOW)
    assert plan.obj is not None
    assert plan.obj["metadata"]["finalizers"] == ["foregroundDeletion"]
    with pytest.raises(StatusError, match="Precondition failed: UID in precondition: x"):
        plan_delete(PODS, bound, DeleteOptions(uid="x"), NOW)


def test_events_and_autoscalers_are_one_object_in_two_versions() -> None:
    modern = REGISTRY.get("events.k8s.io", "v1", "events")
    event = {"apiVersion": "events.k8s.io/v1", "note": "n", "regarding": {"kind": "Pod"}}
    stored = to_storage(modern, event)
    assert stored == {"apiVersion": "v1", "message": "n", "involvedObject": {"kind": "Pod"}}
    assert from_storage(modern, stored) == event
    v1 = REGISTRY.get("autoscaling", "v1", "horizontalpodautoscalers")
    scaler = {
        "apiVersion": "autoscaling/v1",
        "spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 50},
    }
    stored = to_storage(v1, scaler)
    assert stored["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 50
    assert from_storage(v1, stored) == scaler
