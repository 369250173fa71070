"""Merge patch and strategic merge patch with kubectl's directives."""

from __future__ import annotations

from typing import Any

import pytest

from agents.apiserver.definitions import shapes
from emulator.apimachinery import mergepatch, strategic

DEPLOYMENT = "apps.v1.Deployment"


def smp(target: dict[str, Any], patch: dict[str, Any], kind: str) -> dict[str, Any]:
    return strategic.apply(target, patch, kind, shapes())


def test_merge_patch_replaces_lists_and_removes_nulls() -> None:
    target = {"a": [1, 2], "b": {"c": 1, "d": 2}}
    assert mergepatch.apply(target, {"a": [3], "b": {"c": None}}) == {"a": [3], "b": {"d": 2}}
    assert target == {"a": [1, 2], "b": {"c": 1, "d": 2}}


def test_containers_merge_by_name_and_keep_what_the_patch_leaves_out() -> None:
    target = {"spec": {"template": {"spec": {"containers": [
        {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"},
    ]}}}}  # fmt: skip
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "2"}]}}}}
    merged = smp(target, patch, DEPLOYMENT)
    assert merged["spec"]["template"]["spec"]["containers"] == [
        {"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}]},
        {"name": "b"},
    ]


def test_set_element_order_and_delete_as_kubectl_apply_sends_them() -> None:
    target = {"spec": {"ports": [{"port": 80, "nodePort": 1}, {"port": 8080}, {"port": 9}]}}
    patch = {
        "spec": {
            "$setElementOrder/ports": [{"port": 443}, {"port": 80}],
            "ports": [{"port": 443, "name": "s"}, {"$patch": "delete", "port": 8080}],
        }
    }
    # Beside a new item, one that only the live list has comes first, as upstream merges.
    assert smp(target, patch, "core.v1.Service")["spec"]["ports"] == [
        {"port": 9},
        {"port": 443, "name": "s"},
        {"port": 80, "nodePort": 1},
    ]


def test_retain_keys_drops_the_other_members_of_a_union() -> None:
    target = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert smp(target, patch, DEPLOYMENT)["spec"] == {"strategy": {"type": "Recreate"}}


def test_replace_directives() -> None:
    target = {"metadata": {"labels": {"a": "1", "b": "2"}}}
    patch = {"metadata": {"labels": {"$patch": "replace", "c": "3"}}}
    assert smp(target, patch, "core.v1.Pod")["metadata"] == {"labels": {"c": "3"}}
    target = {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}
    patch = {"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}
    assert smp(target, patch, "core.v1.Pod")["spec"] == {"containers": [{"name": "c"}]}


def test_primitive_lists_merge_and_shrink() -> None:
    target = {"metadata": {"finalizers": ["a", "b"]}}
    patch = {"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}
    assert smp(target, patch, "core.v1.Pod")["metadata"] == {"finalizers": ["b", "c"]}


def test_taints_are_replaced_whole_and_null_deletes() -> None:
    target = {"spec": {"taints": [{"key": "a"}], "unschedulable": True}}
    patch = {"spec": {"taints": [{"key": "b"}], "unschedulable": None}}
    assert smp(target, patch, "core.v1.Node") == {"spec": {"taints": [{"key": "b"}]}}


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"containers": [{"image": "x"}]}},
        {"spec": {"containers": ["x"]}},
        {"spec": {"$patch": "explode"}},
        {"spec": {"$retainKeys": "x"}},
    ],
)
def test_impossible_patches_are_refused(patch: dict[str, Any]) -> None:
    with pytest.raises(strategic.PatchError):
        smp({"spec": {"containers": [{"name": "a"}]}}, patch, "core.v1.Pod")


def test_an_order_leaves_what_only_the_live_list_has_in_its_place() -> None:
    target = {"spec": {"ports": [{"port": 1}, {"port": 2}, {"port": 3}]}}
    order = [{"port": 1}, {"port": 3}]
    kept = smp(target, {"spec": {"$setElementOrder/ports": order}}, "core.v1.Service")
    assert [each["port"] for each in kept["spec"]["ports"]] == [1, 2, 3]
    turned = smp(
        target,
        {"spec": {"$setElementOrder/ports": [{"port": n} for n in (3, 2, 1)]}},
        "core.v1.Service",
    )
    assert [each["port"] for each in turned["spec"]["ports"]] == [3, 2, 1]


def test_values_that_are_there_are_not_added_again() -> None:
    merged = smp({"metadata": {"finalizers": ["a", "b"]}}, {"metadata": {"finalizers": ["b", "c"]}},
                 DEPLOYMENT)  # fmt: skip
    assert merged["metadata"]["finalizers"] == ["a", "b", "c"]
