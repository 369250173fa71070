"""Validation of pods and pod templates (pkg/apis/core/validation/validation.go)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery import fielderrors as fe
from emulator.apimachinery import quantity
from emulator.apimachinery import validate_podparts as parts
from emulator.apimachinery.names import (
    check_labels,
    descending_path,
    dns1123_label,
    dns1123_subdomain,
    port_name,
    port_number,
)
from emulator.apimachinery.objects import copy_json, dig, items
from emulator.errors import UsageError

if TYPE_CHECKING:
    from emulator.apimachinery.fielderrors import FieldError
    from emulator.apimachinery.objects import Obj

PROTOCOLS: Final = ("SCTP", "TCP", "UDP")
RESTART_POLICIES: Final = ("Always", "OnFailure", "Never")
_DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")

_UPDATE_TEXT = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set "
    "to 1 if it was previously negative)"
)


def resources(value: Any, field: str) -> list[FieldError]:
    """Requests and limits of a container."""
    out: list[FieldError] = []
    limits, requests = dig(value, "limits") or {}, dig(value, "requests") or {}
    parsed: dict[tuple[str, str], Any] = {}
    for part, amounts in (("limits", limits), ("requests", requests)):
        for name, text in amounts.items():
            where = f"{field}.{part}"
            try:
                amount = quantity.parse(text)
            except UsageError as error:
                out.append(fe.invalid(f"{where}.{name}", text, str(error)))
                continue
            parsed[part, name] = amount
            if "/" not in name and name not in _STANDARD and not name.startswith("hugepages-"):
                out.append(
                    fe.invalid(where, name, "must be a standard resource type or fully qualified")
                )
            if amount < 0:
                out.append(
                    fe.invalid(f"{where}[{name}]", str(text), "must be greater than or equal to 0")
                )
    for name, text in requests.items():
        asked, most = parsed.get(("requests", name)), parsed.get(("limits", name))
        if asked is not None and most is not None and asked > most:
            out.append(
                fe.invalid(
                    f"{field}.requests",
                    str(text),
                    f"must be less than or equal to {name} limit of {limits[name]}",
                )
            )
    return out


_STANDARD = ("cpu", "memory", "ephemeral-storage", "storage", "pods")


def _ports(ports: list[Obj], field: str, *, host_network: bool) -> list[FieldError]:
    out: list[FieldError] = []
    names: list[str] = []
    for i, port in enumerate(ports):
        where = f"{field}[{i}]"
        name = port.get("name")
        if name:
            out += [fe.invalid(f"{where}.name", name, text) for text in port_name(name)]
            if name in names:
                out.append(fe.duplicate(f"{where}.name", name))
            names.append(name)
        number = port.get("containerPort")
        if not number:
            out.append(fe.required(f"{where}.containerPort"))
        else:
            out += [fe.invalid(f"{where}.containerPort", number, t) for t in port_number(number)]
        if port.get("hostPort"):
            host = port["hostPort"]
            out += [fe.invalid(f"{where}.hostPort", host, t) for t in port_number(host)]
            if host_network and host != number:
                text = "must match `containerPort` when `hostNetwork` is true"
                out.append(fe.invalid(f"{where}.hostPort", host, text))
        if port.get("protocol") not in PROTOCOLS:
            out.append(fe.not_supported(f"{where}.protocol", port.get("protocol"), PROTOCOLS))
    return out


def _containers(spec: Obj, key: str, field: str, names: set[str]) -> list[FieldError]:
    out: list[FieldError] = []
    volumes = [v.get("name") for v in items(spec, "volumes")]
    for i, container in enumerate(items(spec, key)):
        where = f"{field}.{key}[{i}]"
        name = container.get("name")
        if not name:
            out.append(fe.required(f"{where}.name"))
        else:
            out += [fe.invalid(f"{where}.name", name, text) for text in dns1123_label(name)]
            if name in names:
                out.append(fe.duplicate(f"{where}.name", name))
            names.add(name)
        image = container.get("image")
        if not image:
            out.append(fe.required(f"{where}.image"))
        elif image != image.strip():
            out.append(
                fe.invalid(f"{where}.image", image, "must not have leading or trailing whitespace")
            )
        host_network = bool(spec.get("hostNetwork"))
        out += _ports(items(container, "ports"), f"{where}.ports", host_network=host_network)
        out += parts.env(items(container, "env"), f"{where}.env")
        out += parts.env_from(items(container, "envFrom"), f"{where}.envFrom")
        out += parts.lifecycle(container, where)
        paths: list[str] = []
        for j, mount in enumerate(items(container, "volumeMounts")):
            if not mount.get("name"):
                out.append(fe.required(f"{where}.volumeMounts[{j}].name"))
            elif mount["name"] not in volumes:
                out.append(fe.not_found(f"{where}.volumeMounts[{j}].name", mount["name"]))
            path = mount.get("mountPath")
            if not path:
                out.append(fe.required(f"{where}.volumeMounts[{j}].mountPath"))
            elif path in paths:
                at = f"{where}.volumeMounts[{j}].mountPath"
                out.append(fe.invalid(at, path, "must be unique"))
            paths.append(path or "")
            inner = mount.get("subPath") or ""
            at = f"{where}.volumeMounts[{j}].subPath"
            out += [fe.invalid(at, inner, text) for text in descending_path(inner)]
        policy = container.get("imagePullPolicy")
        if policy not in _PULL_POLICIES:
            out.append(fe.not_supported(f"{where}.imagePullPolicy", policy, _PULL_POLICIES))
        out += resources(container.get("resources"), f"{where}.resources")
    return out


def pod_spec(spec: Obj, field: str) -> list[FieldError]:
    """A pod's spec or a template's, after defaulting."""
    out: list[FieldError] = []
    seen: list[str] = []
    for i, volume in enumerate(items(spec, "volumes")):
        name = volume.get("name")
        if not name:
            out.append(fe.required(f"{field}.volumes[{i}].name"))
            continue
        out += [fe.invalid(f"{field}.volumes[{i}].name", name, t) for t in dns1123_label(name)]
        if name in seen:
            out.append(fe.duplicate(f"{field}.volumes[{i}].name", name))
        seen.append(name)
        out += parts.volume_source(volume, f"{field}.volumes[{i}]")
    if not items(spec, "containers"):
        out.append(fe.required(f"{field}.containers"))
    names: set[str] = set()
    out += _containers(spec, "containers", field, names)
    out += _containers(spec, "initContainers", field, names)
    if spec.get("restartPolicy") not in RESTART_POLICIES:
        out.append(
            fe.not_supported(f"{field}.restartPolicy", spec.get("restartPolicy"), RESTART_POLICIES)
        )
    if spec.get("dnsPolicy") not in _DNS_POLICIES:
        out.append(fe.not_supported(f"{field}.dnsPolicy", spec.get("dnsPolicy"), _DNS_POLICIES))
    grace = spec.get("terminationGracePeriodSeconds")
    if isinstance(grace, int) and grace < 0:
        out.append(
            fe.invalid(
                f"{field}.terminationGracePeriodSeconds",
                grace,
                "must be greater than or equal to 0",
            )
        )
    out += check_labels(spec.get("nodeSelector"), f"{field}.nodeSelector")
    if spec.get("nodeName"):
        name = spec["nodeName"]
        out += [fe.invalid(f"{field}.nodeName", name, t) for t in dns1123_subdomain(name)]
    if spec.get("hostname"):
        name = spec["hostname"]
        out += [fe.invalid(f"{field}.hostname", name, t) for t in dns1123_label(name)]
    if spec.get("subdomain"):
        name = spec["subdomain"]
        out += [fe.invalid(f"{field}.subdomain", name, t) for t in dns1123_label(name)]
    out += parts.tolerations(items(spec, "tolerations"), f"{field}.tolerations")
    out += parts.placement(spec, field)
    out += parts.identity(spec, field)
    return out


def pod(obj: Obj) -> list[FieldError]:
    """A new pod."""
    return pod_spec(obj.get("spec") or {}, "spec")


def _mutable_removed(spec: Obj) -> Obj:
    out: Obj = copy_json(spec)
    for key in ("containers", "initContainers"):
        for container in items(out, key):
            container.pop("image", None)
            container.pop("imagePullPolicy", None)
    for key in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"):
        out.pop(key, None)
    return out


def pod_update(new: Obj, old: Obj) -> list[FieldError]:
    """A change of a pod: next to nothing of the spec may change."""
    after, before = new.get("spec") or {}, old.get("spec") or {}
    out: list[FieldError] = []
    if _mutable_removed(after) != _mutable_removed(before):
        out.append(fe.forbidden("spec", _UPDATE_TEXT))
    kept = items(after, "tolerations")
    if any(t not in kept for t in items(before, "tolerations")):
        out.append(
            fe.forbidden("spec.tolerations", "existing toleration can not be modified except "
                         "its tolerationSeconds")
        )  # fmt: skip
    return out
