"""Server-side apply: ownership, removal, conflicts, force."""

from __future__ import annotations

from typing import Any

import pytest

from agents.apiserver.definitions import shapes
from emulator.apimachinery import fieldset, serverside
from emulator.apimachinery.objects import copy_json
from emulator.apimachinery.resources import Registry
from emulator.apimachinery.serverside import Manager
from emulator.apimachinery.status import StatusError

DEPLOYMENTS = Registry().get("apps", "v1", "deployments")
ALICE = Manager("alice", "Apply", "apps/v1")
BOB = Manager("bob", "Apply", "apps/v1")
EDITOR = Manager("editor", "Update", "apps/v1")


def manifest(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    template = {"spec": {"containers": list(containers)}}
    return {"metadata": {"name": "d"}, "spec": {"template": template, **spec}}


def apply(
    live: dict[str, Any] | None, wanted: dict[str, Any], who: Manager, *, force: bool = False
) -> dict[str, Any]:
    return serverside.apply(DEPLOYMENTS, live, wanted, who, "T", shapes(), force=force)


def update(live: dict[str, Any], who: Manager, **spec: Any) -> dict[str, Any]:
    new = copy_json(live)
    new["spec"].update(spec)
    serverside.record_update(DEPLOYMENTS, live, new, who, "T", shapes())
    found: dict[str, Any] = new
    return found


def containers(obj: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = obj["spec"]["template"]["spec"]["containers"]
    return found


def test_what_a_manifest_drops_is_removed_and_what_it_never_named_stays() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    obj = apply(None, manifest({"name": "c", "image": "i", "env": env}, replicas=2), ALICE)
    containers(obj)[0]["imagePullPolicy"] = "Always"
    obj = apply(obj, manifest({"name": "c", "image": "j", "env": env[1:]}), ALICE)
    assert containers(obj) == [
        {"name": "c", "image": "j", "env": [env[1]], "imagePullPolicy": "Always"}
    ]
    assert "replicas" not in obj["spec"]


def test_a_second_apply_of_the_same_manifest_changes_nothing() -> None:
    wanted = manifest({"name": "c", "image": "i", "ports": [{"containerPort": 80}]})
    obj = apply(None, wanted, ALICE)
    assert apply(obj, wanted, ALICE) == obj


def test_changing_what_another_owns_is_a_conflict_unless_forced() -> None:
    obj = apply(None, manifest({"name": "c", "image": "i"}, replicas=1), ALICE)
    wanted = manifest({"name": "c"}, replicas=5)
    with pytest.raises(StatusError) as caught:
        apply(obj, wanted, BOB)
    assert (caught.value.code, caught.value.reason) == (409, "Conflict")
    assert caught.value.message == (
        'Apply failed with 1 conflict: conflict with "alice": .spec.replicas'
    )
    assert caught.value.details == {
        "causes": [
            {
                "reason": "FieldManagerConflict",
                "message": 'conflict with "alice"',
                "field": ".spec.replicas",
            }
        ]
    }
    obj = apply(obj, wanted, BOB, force=True)
    assert obj["spec"]["replicas"] == 5
    obj = apply(obj, manifest({"name": "c", "image": "i"}), ALICE)
    assert obj["spec"]["replicas"] == 5


def test_shared_fields_stay_until_the_last_owner_leaves() -> None:
    both = manifest({"name": "c", "image": "i"}, replicas=1)
    obj = apply(apply(None, both, ALICE), both, BOB)
    without = manifest({"name": "c", "image": "i"})
    obj = apply(obj, without, ALICE)
    assert obj["spec"]["replicas"] == 1
    assert "replicas" not in apply(obj, without, BOB)["spec"]


def test_an_update_takes_ownership_and_then_conflicts_name_its_api_version() -> None:
    obj = apply(None, manifest({"name": "c", "image": "i"}, replicas=1), ALICE)
    obj = update(obj, EDITOR, replicas=3)
    owners = {m.name: sorted(e.fields) for m, e in serverside.read_managers(obj).items()}
    assert owners["editor"] == [("f:spec", "f:replicas")]
    assert ("f:spec", "f:replicas") not in owners["alice"]
    with pytest.raises(
        StatusError, match=r'conflict with "editor" using apps/v1: \.spec\.replicas'
    ):
        apply(obj, manifest({"name": "c", "image": "i"}, replicas=1), ALICE)


def test_several_conflicts_are_listed_by_manager() -> None:
    obj = apply(None, manifest({"name": "c", "image": "i"}, replicas=1), ALICE)
    with pytest.raises(StatusError) as caught:
        apply(obj, manifest({"name": "c", "image": "j"}, replicas=2), BOB)
    assert caught.value.message == (
        'Apply failed with 2 conflicts: conflicts with "alice":\n'
        '- .spec.replicas\n- .spec.template.spec.containers[name="c"].image'
    )


def test_field_sets_round_trip_through_fields_v1() -> None:
    wanted = manifest({"name": "c", "ports": [{"containerPort": 80}]}, paused=True)
    paths = fieldset.Walker(shapes()).paths(wanted, DEPLOYMENTS.schema)
    encoded = fieldset.encode(paths)
    assert sorted(fieldset.decode(encoded)) == sorted(paths)
    item = encoded["f:spec"]["f:template"]["f:spec"]["f:containers"]['k:{"name":"c"}']
    assert item["f:ports"] == {
        'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}
    }
