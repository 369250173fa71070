"""What happens to an object on its way into storage: create, update, delete.

The equivalent of apiserver's registry/rest (create.go, update.go, delete.go) and the strategies'
PrepareFor… functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from emulator.apimachinery import fielderrors as fe
from emulator.apimachinery import status as errors
from emulator.apimachinery.behaviour import behaviour_of
from emulator.apimachinery.defaults import qos_class
from emulator.apimachinery.gotext import string_list
from emulator.apimachinery.names import check_metadata, generate_name
from emulator.apimachinery.objects import Obj, copy_json, dig, drop_nulls, items, name_of, sub
from emulator.apimachinery.times import rfc3339

if TYPE_CHECKING:
    import random

    from emulator.apimachinery.fielderrors import FieldError
    from emulator.apimachinery.resources import ResourceType

_SERVER_OWNED = ("selfLink", "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds")
FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"


def new_uid(rng: random.Random) -> str:
    """A random (version 4) UUID as text."""
    bits = rng.getrandbits(128)
    bits = bits & ~(0xF << 76) | 4 << 76
    bits = bits & ~(0x3 << 62) | 2 << 62
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def prepare_create(
    resource: ResourceType, obj: Obj, *, namespace: str, now: float, rng: random.Random
) -> None:
    """Fill a new object in place: names, identity, defaults, first status.

    Raises StatusError 400 or 422.
    """
    behaviour = behaviour_of(resource)
    drop_nulls(obj)
    meta = sub(obj, "metadata")
    if meta.get("resourceVersion"):
        raise errors.bad_request("resourceVersion should not be set on objects to be created")
    for key in _SERVER_OWNED:
        meta.pop(key, None)
    if resource.namespaced:
        if meta.get("namespace") not in (None, "", namespace):
            raise errors.other_namespace()
        meta["namespace"] = namespace
    else:
        meta.pop("namespace", None)
    if not meta.get("name") and meta.get("generateName"):
        meta["name"] = generate_name(meta["generateName"], rng)
    meta["uid"] = new_uid(rng)
    meta["creationTimestamp"] = rfc3339(now)
    meta.pop("generation", None)
    if behaviour.generation:
        meta["generation"] = 1
    obj["kind"], obj["apiVersion"] = resource.kind, resource.group_version
    if resource.subresource("status") is not None:
        obj.pop("status", None)
    behaviour.default(obj)
    _first_status(resource, obj, rng)
    found = check_metadata(obj, namespaced=resource.namespaced, name_check=behaviour.name_check)
    found += behaviour.validate(obj)
    if found:
        raise errors.invalid(resource.kind, resource.group, name_of(obj), found)


def _first_status(resource: ResourceType, obj: Obj, rng: random.Random) -> None:
    match resource.group, resource.plural:
        case "", "pods":
            obj["status"] = {"phase": "Pending", "qosClass": qos_class(obj["spec"])}
        case "", "namespaces":
            sub(obj, "spec").setdefault("finalizers", ["kubernetes"])
            obj["status"] = {"phase": "Active"}
        case "", "services":
            obj["status"] = {"loadBalancer": {}}
        case "apps", "daemonsets":
            annotations = sub(sub(obj, "metadata"), "annotations")
            annotations["deprecated.daemonset.template.generation"] = "1"
            obj["status"] = {
                "currentNumberScheduled": 0,
                "desiredNumberScheduled": 0,
                "numberMisscheduled": 0,
                "numberReady": 0,
            }
        case ("apps", "replicasets") | ("apps", "statefulsets") | ("", "replicationcontrollers"):
            obj["status"] = {"replicas": 0}
        case "apiextensions.k8s.io", "customresourcedefinitions":
            obj["status"] = _accepted(obj)
        case "batch", "jobs":
            _job_selector(obj)
            obj["status"] = {}
        case _ if resource.subresource("status") is not None and "status" not in obj:
            obj["status"] = {}


def _accepted(obj: Obj) -> Obj:
    """A definition is served as soon as it is stored; its name keeps it apart from all others."""
    at = obj["metadata"]["creationTimestamp"]
    spec = obj["spec"]
    conditions = [
        {
            "type": kind,
            "status": "True",
            "lastTransitionTime": at,
            "reason": reason,
            "message": text,
        }
        for kind, reason, text in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
    stored = [v.get("name") for v in items(spec, "versions") if v.get("storage")]
    names = copy_json(spec.get("names") or {})
    return {"conditions": conditions, "acceptedNames": names, "storedVersions": stored}


def _job_selector(obj: Obj) -> None:
    spec = obj["spec"]
    if spec.get("manualSelector") or spec.get("selector"):
        return
    uid, name = obj["metadata"]["uid"], name_of(obj)
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    labels = sub(sub(sub(spec, "template"), "metadata"), "labels")
    labels["batch.kubernetes.io/controller-uid"] = labels["controller-uid"] = uid
    labels["batch.kubernetes.io/job-name"] = labels["job-name"] = name


def prepare_update(resource: ResourceType, new: Obj, old: Obj, *, subresource: str = "") -> Obj:
    """The object to store when ``old`` is replaced by ``new``; neither is changed.

    Raises StatusError 400, 409 or 422.
    """
    behaviour = behaviour_of(resource)
    out: Obj = drop_nulls(copy_json(new))
    meta, had = sub(out, "metadata"), old["metadata"]
    name = name_of(old)
    if meta.get("uid") and meta["uid"] != had.get("uid"):
        raise errors.conflict(
            resource.plural,
            resource.group,
            name,
            f"Precondition failed: UID in precondition: {meta['uid']}, "
            f"UID in object meta: {had.get('uid')}",
        )
    if meta.get("resourceVersion") not in (None, "", had.get("resourceVersion")):
        raise errors.conflict(resource.plural, resource.group, name, errors.MODIFIED)
    if meta.get("name") not in (None, "", name):
        raise errors.other_name(meta["name"], name)
    if resource.namespaced and meta.get("namespace") not in (None, "", had.get("namespace")):
        raise errors.other_namespace()
    out["kind"], out["apiVersion"] = resource.kind, resource.group_version
    meta.pop("selfLink", None)
    if "managedFields" not in meta and "managedFields" in had:
        meta["managedFields"] = copy_json(had["managedFields"])
    for key in (
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ):
        if key in had:
            meta[key] = had[key]
        else:
            meta.pop(key, None)
    if subresource == "status":
        out = _status_update(resource, out, old)
    elif subresource == "binding":
        return out
    else:
        if resource.subresource("status") is not None:
            if "status" in old:
                out["status"] = copy_json(old["status"])
            else:
                out.pop("status", None)
        if resource.plural == "namespaces" and resource.group == "" and not subresource:
            sub(out, "spec")["finalizers"] = items(old, "spec", "finalizers")
        _keep_addresses(resource, out, old)
        behaviour.default(out)
        if behaviour.generation and _intent(out) != _intent(old):
            meta["generation"] = (had.get("generation") or 0) + 1
    found = check_metadata(out, namespaced=resource.namespaced, name_check=behaviour.name_check)
    found += _new_finalizers(meta, had)
    if subresource != "status":
        found += behaviour.validate(out)
        found += behaviour.validate_update(out, old)
    if found:
        raise errors.invalid(resource.kind, resource.group, name, found)
    return out


def _new_finalizers(meta: Obj, had: Obj) -> list[FieldError]:
    """Whatever waits for a deleted object has to have said so before."""
    known = had.get("finalizers") or []
    extra = sorted(f for f in meta.get("finalizers") or [] if f not in known)
    if not extra or not had.get("deletionTimestamp"):
        return []
    text = (
        "no new finalizers can be added if the object is being deleted, found new finalizers "
        f"{string_list(extra)}"
    )
    return [fe.forbidden("metadata.finalizers", text)]


def _intent(obj: Obj) -> Obj:
    return {k: v for k, v in obj.items() if k not in ("metadata", "status", "kind", "apiVersion")}


def _status_update(resource: ResourceType, new: Obj, old: Obj) -> Obj:
    out: Obj = copy_json(old)
    if "status" in new:
        out["status"] = new["status"]
    else:
        out.pop("status", None)
    # Kubelets annotate nodes and pods through the status endpoint; elsewhere metadata stays.
    if (resource.group, resource.plural) in (("", "nodes"), ("", "pods")):
        for key in ("annotations", "labels"):
            if key in new["metadata"]:
                out["metadata"][key] = new["metadata"][key]
            else:
                out["metadata"].pop(key, None)
    for key in ("finalizers", "managedFields"):
        if key in new["metadata"]:
            out["metadata"][key] = new["metadata"][key]
        else:
            out["metadata"].pop(key, None)
    return out


def _keep_addresses(resource: ResourceType, new: Obj, old: Obj) -> None:
    """A Service update that leaves addresses out keeps them (patchAllocatedValues)."""
    if (resource.group, resource.plural) != ("", "services"):
        return
    spec, had = sub(new, "spec"), old.get("spec") or {}
    kind = spec.get("type") or "ClusterIP"
    if kind == "ExternalName" or had.get("type") == "ExternalName":
        if kind == "ExternalName" and spec.get("clusterIP") == had.get("clusterIP"):
            for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(key, None)
        return
    if not spec.get("clusterIP") and not spec.get("clusterIPs"):
        for key in ("clusterIP", "clusterIPs"):
            if key in had:
                spec[key] = copy_json(had[key])
    elif not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    elif spec.get("clusterIP") != spec["clusterIPs"][0]:
        # Only one of the two was changed: the changed one wins.
        if spec.get("clusterIP") == had.get("clusterIP"):
            spec["clusterIP"] = spec["clusterIPs"][0]
        elif spec.get("clusterIPs") == had.get("clusterIPs"):
            spec["clusterIPs"] = [spec["clusterIP"]] if spec.get("clusterIP") else []
    if kind in ("NodePort", "LoadBalancer") and had.get("type") in ("NodePort", "LoadBalancer"):
        known = {
            (p.get("protocol"), p.get("port")): p.get("nodePort") for p in had.get("ports") or []
        }
        taken = [p.get("nodePort") for p in spec.get("ports") or [] if p.get("nodePort")]
        for port in spec.get("ports") or []:
            kept = known.get((port.get("protocol") or "TCP", port.get("port")))
            if not port.get("nodePort") and kept and kept not in taken:
                port["nodePort"] = kept
    elif kind == "ClusterIP" and had.get("type") in ("NodePort", "LoadBalancer"):
        before = {p.get("nodePort") for p in had.get("ports") or []}
        for port in spec.get("ports") or []:
            if port.get("nodePort") in before:
                port.pop("nodePort", None)
        if "externalTrafficPolicy" in had:
            spec.pop("externalTrafficPolicy", None)
            spec.pop("allocateLoadBalancerNodePorts", None)


class DeleteOptions(NamedTuple):
    """A DELETE's body."""

    grace_s: int | None = None
    policy: str = ""
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False


class Deletion(NamedTuple):
    """What to do: remove now, or store ``obj`` (None: nothing changed) and wait."""

    remove: bool
    obj: Obj | None


def delete_options(body: Any) -> DeleteOptions:
    """Read DeleteOptions; StatusError 400/422 for a bad one."""
    if not isinstance(body, dict):
        return DeleteOptions()
    grace = body.get("gracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        raise errors.bad_request("gracePeriodSeconds must be an integer")
    policy = body.get("propagationPolicy") or ""
    if not policy and body.get("orphanDependents"):
        policy = "Orphan"
    if policy not in ("", "Background", "Foreground", "Orphan"):
        known = ("Foreground", "Background", "Orphan", "nil")
        raise errors.invalid(
            "DeleteOptions",
            "meta.k8s.io",
            "",
            [fe.not_supported("propagationPolicy", policy, known)],
        )
    conditions = body.get("preconditions") or {}
    return DeleteOptions(
        grace,
        policy,
        str(conditions.get("uid") or ""),
        str(conditions.get("resourceVersion") or ""),
        bool(body.get("dryRun")),
    )


def plan_delete(resource: ResourceType, old: Obj, options: DeleteOptions, now: float) -> Deletion:
    """Decide what a DELETE does to an object.  Raises StatusError 409 for failed preconditions."""
    meta = old["metadata"]
    for asked, have, what in (
        (options.uid, meta.get("uid"), "UID"),
        (options.resource_version, meta.get("resourceVersion"), "ResourceVersion"),
    ):
        if asked and asked != have:
            raise errors.conflict(
                resource.plural,
                resource.group,
                name_of(old),
                f"Precondition failed: {what} in precondition: {asked}, "
                f"{what} in object meta: {have}",
            )
    finalizers = [f for f in meta.get("finalizers") or [] if f not in (FOREGROUND, ORPHAN)]
    kept = [f for f in meta.get("finalizers") or [] if f in (FOREGROUND, ORPHAN)]
    if options.policy == "Foreground":
        kept = [FOREGROUND]
    elif options.policy == "Orphan":
        kept = [ORPHAN]
    elif options.policy == "Background":
        kept = []
    finalizers += kept
    is_namespace = (resource.group, resource.plural) == ("", "namespaces")
    grace = _grace(resource, old, options)
    if not finalizers and grace == 0 and not (is_namespace and items(old, "spec", "finalizers")):
        return Deletion(True, None)
    out: Obj = copy_json(old)
    new = out["metadata"]
    if finalizers:
        new["finalizers"] = finalizers
    else:
        new.pop("finalizers", None)
    before = meta.get("deletionGracePeriodSeconds")
    if not meta.get("deletionTimestamp"):
        new["deletionTimestamp"] = rfc3339(now + grace)
        new["deletionGracePeriodSeconds"] = grace
        if "generation" in new:
            new["generation"] += 1
    elif before is not None and grace < before and options.grace_s is not None:
        new["deletionTimestamp"] = rfc3339(now + grace)
        new["deletionGracePeriodSeconds"] = grace
    if is_namespace:
        new.pop("deletionGracePeriodSeconds", None)
        sub(out, "status")["phase"] = "Terminating"
    return Deletion(False, None if out == old else out)


def _grace(resource: ResourceType, old: Obj, options: DeleteOptions) -> int:
    if not behaviour_of(resource).graceful:
        return 0
    if not dig(old, "spec", "nodeName") or dig(old, "status", "phase") in ("Succeeded", "Failed"):
        return 0
    grace = options.grace_s
    if grace is None:
        grace = dig(old, "metadata", "deletionGracePeriodSeconds")
    if grace is None:
        grace = dig(old, "spec", "terminationGracePeriodSeconds")
    if grace is None:
        grace = 30
    return max(int(grace), 0) if grace >= 0 else 1


def finished(resource: ResourceType, obj: Obj) -> bool:
    """Whether an object that is being deleted has nothing left to wait for."""
    meta = obj["metadata"]
    if not meta.get("deletionTimestamp") or meta.get("finalizers"):
        return False
    if (resource.group, resource.plural) == ("", "namespaces"):
        return not items(obj, "spec", "finalizers")
    return meta.get("deletionGracePeriodSeconds") in (0, None)
