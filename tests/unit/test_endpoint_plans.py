"""Endpoints and EndpointSlices that follow from a Service and its pods."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.controllers.actions import Create, Delete, Patch, Plan
from agents.controllers.endpoints import plan_endpoints
from agents.controllers.endpointslice import MAX_ENDPOINTS, plan_slices
from emulator.apimachinery import mergepatch

Object = dict[str, Any]


def service(**spec: Any) -> Object:
    base = {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]}
    meta = {"name": "web", "namespace": "default", "uid": "s", "labels": {"app": "web"}}
    return {"metadata": meta, "spec": {**base, **spec}}


def pod(number: int, *, ready: bool = True, port: int = 80, **meta: Any) -> Object:
    container = {"ports": [{"containerPort": port, "name": "http"}]}
    return {
        "metadata": {"name": f"p{number}", "namespace": "default", "uid": f"u{number}", **meta},
        "spec": {"nodeName": "node-0", "containers": [container]},
        "status": {
            "phase": "Running",
            "podIP": f"10.244.{number // 200}.{number % 200 + 2}",
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def subsets(plan: Plan) -> Any:
    (action,) = plan.actions
    if isinstance(action, Create):
        return action.obj.get("subsets", [])
    assert isinstance(action, Patch)
    return action.body["subsets"]


def test_ready_and_unready_addresses_stand_apart_in_order() -> None:
    plan = plan_endpoints(service(), [pod(9), pod(1, ready=False), pod(0)], None)
    (subset,) = subsets(plan)
    assert [a["ip"] for a in subset["addresses"]] == ["10.244.0.2", "10.244.0.11"]
    assert [a["ip"] for a in subset["notReadyAddresses"]] == ["10.244.0.3"]
    assert subset["ports"] == [{"port": 80, "protocol": "TCP"}]
    assert subset["addresses"][0]["targetRef"]["name"] == "p0"


def test_endpoints_that_fit_are_left_alone() -> None:
    pods = [pod(0), pod(1)]
    (create,) = plan_endpoints(service(), pods, None).actions
    assert isinstance(create, Create)
    assert plan_endpoints(service(), pods, create.obj) == Plan()
    assert subsets(plan_endpoints(service(), [], create.obj)) is None


@pytest.mark.parametrize(
    "gone",
    [
        {"status": {"phase": "Running"}},
        {"status": {"phase": "Succeeded", "podIP": "10.0.0.1"}},
        {"metadata": {"name": "x", "namespace": "default", "deletionTimestamp": "now"}},
    ],
)
def test_pods_without_address_finished_or_going_are_no_endpoints(gone: Object) -> None:
    assert subsets(plan_endpoints(service(), [{**pod(0), **gone}], None)) == []


def test_services_that_choose_nothing_are_left_to_others() -> None:
    assert plan_endpoints(service(selector=None), [pod(0)], None) == Plan()
    assert plan_endpoints(service(type="ExternalName"), [pod(0)], None) == Plan()
    current = {"metadata": {"name": "web", "namespace": "default"}}
    (delete,) = plan_endpoints(None, [], current).actions
    assert isinstance(delete, Delete)


def test_a_named_port_is_what_each_pod_calls_it() -> None:
    named = service(ports=[{"port": 80, "targetPort": "http", "name": "web"}])
    found = subsets(plan_endpoints(named, [pod(0, port=8080), pod(1, port=9090)], None))
    assert [(s["ports"][0]["port"], s["addresses"][0]["ip"]) for s in found] == [
        (8080, "10.244.0.2"),
        (9090, "10.244.0.3"),
    ]


def test_unready_pods_can_be_published() -> None:
    (subset,) = subsets(
        plan_endpoints(service(publishNotReadyAddresses=True), [pod(0, ready=False)], None)
    )
    assert "notReadyAddresses" not in subset


def store(plan: Plan, current: list[Object]) -> list[Object]:
    """What the API server would hold afterwards."""
    by_name = {piece["metadata"]["name"]: piece for piece in copy.deepcopy(current)}
    for action in plan.actions:
        if isinstance(action, Create):
            made = copy.deepcopy(action.obj)
            made["metadata"]["uid"] = made["metadata"]["name"]
            by_name[made["metadata"]["name"]] = made
        elif isinstance(action, Patch):
            by_name[action.name] = mergepatch.apply(by_name[action.name], action.body)
        elif isinstance(action, Delete):
            del by_name[action.name]
    return [*by_name.values()]


def addresses(slices: list[Object]) -> list[str]:
    return sorted(e["addresses"][0] for piece in slices for e in piece["endpoints"])


def test_a_slice_says_what_a_pod_can_do() -> None:
    pods = [pod(0), pod(1, ready=False), pod(2, deletionTimestamp="now")]
    (piece,) = store(plan_slices(service(), pods, [], random.Random(1)), [])
    assert [e["conditions"] for e in piece["endpoints"]] == [
        {"ready": True, "serving": True, "terminating": False},
        {"ready": False, "serving": False, "terminating": False},
        {"ready": False, "serving": True, "terminating": True},
    ]
    assert piece["metadata"]["labels"] == {
        "app": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": "web",
    }
    assert piece["metadata"]["name"].startswith("web-")
    assert piece["ports"] == [{"name": "", "port": 80, "protocol": "TCP"}]


def test_a_service_without_pods_keeps_one_empty_slice() -> None:
    rng = random.Random(1)
    current = store(plan_slices(service(), [], [], rng), [])
    assert addresses(current) == []
    assert len(current) == 1
    assert plan_slices(service(), [], current, rng) == Plan()
    filled = store(plan_slices(service(), [pod(0)], current, rng), current)
    assert [p["metadata"]["name"] for p in filled] == [current[0]["metadata"]["name"]]


# Some hundred pods, some of them missing: several slices, full ones, emptied ones.
NUMBERS = st.builds(
    lambda first, last, but: set(range(first, last)) - but,
    st.integers(0, 200),
    st.integers(0, 330),
    st.sets(st.integers(0, 330), max_size=20),
)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=4), st.integers(0, 2**32))
def test_slices_hold_each_pod_once_and_never_too_many(steps: list[set[int]], seed: int) -> None:
    rng = random.Random(seed)
    current: list[Object] = []
    for numbers in steps:
        pods = [pod(number) for number in sorted(numbers)]
        current = store(plan_slices(service(), pods, current, rng), current)
        assert addresses(current) == sorted(p["status"]["podIP"] for p in pods)
        assert all(len(piece["endpoints"]) <= MAX_ENDPOINTS for piece in current)
        assert all(piece["endpoints"] for piece in current) or (not pods and len(current) == 1)
        assert plan_slices(service(), pods, current, rng) == Plan()


def test_one_pod_less_changes_one_slice_only() -> None:
    rng = random.Random(1)
    pods = [pod(number) for number in range(250)]
    current = store(plan_slices(service(), pods, [], rng), [])
    assert sorted(len(piece["endpoints"]) for piece in current) == [50, 100, 100]
    plan = plan_slices(service(), pods[1:], current, rng)
    assert len(plan.actions) == 1


def test_slices_follow_the_services_labels_but_for_the_controllers_own() -> None:
    rng = random.Random(1)
    headless = service(clusterIP="None")
    current = store(plan_slices(headless, [pod(0)], [], rng), [])
    assert current[0]["metadata"]["labels"]["service.kubernetes.io/headless"] == ""
    # The mark is the slice's own: that the Service carries it says nothing.
    renamed = service()
    renamed["metadata"]["labels"] = {"tier": "front", "service.kubernetes.io/headless": ""}
    (changed,) = store(plan_slices(renamed, [pod(0)], current, rng), current)
    assert changed["metadata"]["labels"] == {
        "tier": "front",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": "web",
    }
    assert plan_slices(renamed, [pod(0)], [changed], rng) == Plan()


def test_a_slice_being_deleted_holds_nothing_any_more() -> None:
    rng = random.Random(1)
    (piece,) = store(plan_slices(service(), [pod(0)], [], rng), [])
    piece["metadata"]["deletionTimestamp"] = "now"
    (action,) = plan_slices(service(), [pod(0)], [piece], rng).actions
    assert isinstance(action, Create)
    assert addresses([action.obj]) == ["10.244.0.2"]


def test_a_named_port_is_that_of_its_protocol() -> None:
    ports = [{"port": 53, "targetPort": "http", "name": "u", "protocol": "UDP"}]
    both = pod(0)
    both["spec"]["containers"][0]["ports"].append(
        {"containerPort": 5353, "name": "http", "protocol": "UDP"}
    )
    (subset,) = subsets(plan_endpoints(service(ports=ports), [both], None))
    assert subset["ports"] == [{"name": "u", "port": 5353, "protocol": "UDP"}]
    assert subsets(plan_endpoints(service(ports=ports), [pod(0)], None)) == []


def test_a_pod_has_a_name_only_in_its_own_subdomain() -> None:
    own, other = pod(0), pod(1)
    own["spec"] |= {"hostname": "first", "subdomain": "web"}
    other["spec"] |= {"hostname": "second", "subdomain": "elsewhere"}
    (subset,) = subsets(plan_endpoints(service(), [own, other], None))
    assert [a.get("hostname") for a in subset["addresses"]] == ["first", None]


def test_endpoints_hold_so_many_the_ready_first_and_say_so() -> None:
    many = [pod(number, ready=number >= 10) for number in range(1005)]
    (create,) = plan_endpoints(service(), many, None).actions
    assert isinstance(create, Create)
    (subset,) = create.obj["subsets"]
    assert (len(subset["addresses"]), len(subset["notReadyAddresses"])) == (995, 5)
    mark = "endpoints.kubernetes.io/over-capacity"
    assert create.obj["metadata"]["annotations"] == {mark: "truncated"}
    assert plan_endpoints(service(), many, create.obj) == Plan()
    (patch,) = plan_endpoints(service(), many[:1000], create.obj).actions
    assert isinstance(patch, Patch)
    assert patch.body["metadata"]["annotations"] == {mark: None}


def test_endpoints_follow_the_services_labels() -> None:
    (create,) = plan_endpoints(service(), [pod(0)], None).actions
    assert isinstance(create, Create)
    renamed = service()
    renamed["metadata"]["labels"] = {"tier": "front"}
    (patch,) = plan_endpoints(renamed, [pod(0)], create.obj).actions
    assert isinstance(patch, Patch)
    assert patch.body == {"metadata": {"labels": {"app": None, "tier": "front"}}}
