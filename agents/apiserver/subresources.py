"""Subresources with a kind of their own: scale, binding, eviction, finalize, token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.apiserver import body as bodies
from agents.apiserver.negotiate import accepted, respond
from agents.apiserver.patching import PATCH_TYPES, apply_patch
from agents.apiserver.tokens import DEFAULT_SECONDS, ISSUER
from emulator.apimachinery import fielderrors as fe
from emulator.apimachinery import status as errors
from emulator.apimachinery.labels import format_label_selector, format_labels
from emulator.apimachinery.lifecycle import delete_options
from emulator.apimachinery.objects import Obj, copy_json, dig, items, sub
from emulator.apimachinery.resources import ResourceType
from emulator.apimachinery.times import rfc3339

if TYPE_CHECKING:
    from aiohttp import web

    from agents.apiserver.call import Call
    from agents.apiserver.rest import Rest
    from agents.apiserver.tokens import ServiceAccountTokens

SCALE = ResourceType("autoscaling", "v1", "Scale", "scale", schema="autoscaling.v1.Scale")
BINDING = ResourceType("", "v1", "Binding", "bindings", schema="core.v1.Binding")
TOKEN_REQUEST = ResourceType(
    "authentication.k8s.io", "v1", "TokenRequest", "tokenrequests",
    schema="authentication.v1.TokenRequest",
)  # fmt: skip
EVICTION = ResourceType("policy", "v1", "Eviction", "evictions", schema="policy.v1.Eviction")


async def _read(call: Call, kind: ResourceType) -> Obj:
    media = bodies.media_type(call.request)
    if media not in bodies.ACCEPTED:
        raise errors.unsupported_media_type(media, bodies.ACCEPTED)
    data = await bodies.read(call.request)
    obj = bodies.decode(data, media, kind.schema, kind.kind)
    out, _ = bodies.check_object(
        obj,
        kind=kind.kind,
        group_version=kind.group_version,
        schema=kind.schema,
        mode=bodies.validation_mode(call.query),
    )
    return out


def scale_of(obj: Obj) -> Obj:
    """The Scale of a workload."""
    meta = obj["metadata"]
    selector = dig(obj, "spec", "selector")
    if isinstance(selector, dict) and not {"matchLabels", "matchExpressions"} & set(selector):
        text = format_labels(selector)
    else:
        text = format_label_selector(selector)
    status: Obj = {"replicas": dig(obj, "status", "replicas") or 0}
    if text != "<none>":
        status["selector"] = text
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {k: meta[k] for k in kept if k in meta},
        "spec": {"replicas": dig(obj, "spec", "replicas") or 0},
        "status": status,
    }


async def scale(rest: Rest, call: Call) -> web.StreamResponse:
    """GET, PUT and PATCH of ``…/scale``."""
    accepted(call.accept)
    request = call.request
    if request.method == "GET":
        obj = await rest.objects.current(call.resource, call.namespace, call.name)
        return respond(scale_of(obj))
    if request.method == "PUT":
        wanted = await _read(call, SCALE)

        def change(old: Obj) -> Obj:
            return wanted

    else:
        media = bodies.media_type(request)
        if media not in PATCH_TYPES:
            raise errors.unsupported_media_type(media, PATCH_TYPES)
        data = await bodies.read(request)

        def change(old: Obj) -> Obj:
            return apply_patch(media, data, scale_of(old), SCALE)

    def set_replicas(old: Obj) -> Obj:
        new_scale = change(old)
        replicas = dig(new_scale, "spec", "replicas") or 0
        if not isinstance(replicas, int) or replicas < 0:
            found = [fe.invalid("spec.replicas", replicas, "must be greater than or equal to 0")]
            raise errors.invalid("Scale", "autoscaling", call.name, found)
        version = dig(new_scale, "metadata", "resourceVersion")
        if version and version != old["metadata"]["resourceVersion"]:
            raise errors.conflict(
                call.resource.plural, call.resource.group, call.name, errors.MODIFIED
            )
        sub(old, "spec")["replicas"] = replicas
        return old

    out = await rest.objects.modify(
        call.resource,
        call.namespace,
        call.name,
        set_replicas,
        dry_run=bodies.dry_run(call.query),
        call=call,
    )
    return respond(scale_of(out))


async def binding(rest: Rest, call: Call) -> web.StreamResponse:
    """POST of ``pods/N/binding``: the scheduler's decision."""
    wanted = await _read(call, BINDING)
    node = dig(wanted, "target", "name")
    if not node:
        found = [fe.required("target.name")]
        raise errors.invalid("Binding", "", call.name, found)
    annotations = dig(wanted, "metadata", "annotations") or {}
    uid = dig(wanted, "metadata", "uid")

    def bind(pod: Obj) -> Obj:
        meta = pod["metadata"]
        where = "pods/binding"
        if uid and uid != meta.get("uid"):
            raise errors.conflict(
                where,
                "",
                call.name,
                f"Precondition failed: UID in precondition: {uid}, "
                f"UID in object meta: {meta.get('uid')}",
            )
        if meta.get("deletionTimestamp"):
            raise errors.conflict(
                where,
                "",
                call.name,
                f"pod {call.name} is being deleted, cannot be assigned to a host",
            )
        if dig(pod, "spec", "nodeName"):
            raise errors.conflict(
                where,
                "",
                call.name,
                f'pod {call.name} is already assigned to node "{pod["spec"]["nodeName"]}"',
            )
        pod["spec"]["nodeName"] = node
        if annotations:
            sub(meta, "annotations").update(annotations)
        conditions = sub(pod, "status").setdefault("conditions", [])
        conditions[:] = [c for c in conditions if c.get("type") != "PodScheduled"]
        conditions.append(
            {
                "type": "PodScheduled",
                "status": "True",
                "lastProbeTime": None,
                "lastTransitionTime": rfc3339(rest.objects.now()),
            }
        )
        return pod

    await rest.objects.modify(
        call.resource, call.namespace, call.name, bind,
        subresource="binding", dry_run=bodies.dry_run(call.query),
    )  # fmt: skip
    return respond(errors.status_object("Success", code=201), status=201)


async def eviction(rest: Rest, call: Call) -> web.StreamResponse:
    """POST of ``pods/N/eviction``: a graceful delete.

    Budgets do not hold it back, because no controller keeps their ``disruptionsAllowed``.
    """
    wanted = await _read(call, EVICTION)
    options = delete_options(wanted.get("deleteOptions"))
    dry = bodies.dry_run(call.query) or options.dry_run
    await rest.objects.current(call.resource, call.namespace, call.name)
    await rest.objects.delete(
        call.resource, call.namespace, call.name, options._replace(dry_run=dry)
    )
    return respond(errors.status_object("Success", code=201), status=201)


async def token(rest: Rest, tokens: ServiceAccountTokens, call: Call) -> web.StreamResponse:
    """POST of ``serviceaccounts/N/token``."""
    wanted = await _read(call, TOKEN_REQUEST)
    account = await rest.objects.current(call.resource, call.namespace, call.name)
    spec = wanted.get("spec") or {}
    status = tokens.issue(call.namespace, account, spec)
    meta = {
        "name": call.name,
        "namespace": call.namespace,
        "creationTimestamp": rfc3339(rest.objects.now()),
    }
    out = {
        "kind": "TokenRequest",
        "apiVersion": TOKEN_REQUEST.group_version,
        "metadata": meta,
        "spec": {"audiences": [ISSUER], "expirationSeconds": DEFAULT_SECONDS} | spec,
        "status": status,
    }
    return respond(out, status=201)


async def finalize(rest: Rest, call: Call) -> web.StreamResponse:
    """PUT of ``namespaces/N/finalize``: the namespace controller has emptied it."""
    wanted, warnings = await rest.read_object(call)

    def change(old: Obj) -> Obj:
        sub(old, "spec")["finalizers"] = copy_json(items(wanted, "spec", "finalizers"))
        return old

    out = await rest.objects.modify(
        call.resource, "", call.name, change, subresource="finalize",
        dry_run=bodies.dry_run(call.query),
    )  # fmt: skip
    return respond(out, warnings=warnings)
