"""Validation of a pod's parts: environment, probes, volumes, placement.

After pkg/apis/core/validation/validation.go, whose words these are.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery import fielderrors as fe
from emulator.apimachinery.names import (
    dns1123_subdomain,
    file_path,
    label_value,
    no_backsteps,
    port_name,
    port_number,
    qualified_name,
)
from emulator.apimachinery.objects import dig, items

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.apimachinery.fielderrors import FieldError
    from emulator.apimachinery.objects import Obj

_ENV_SOURCES: Final = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef")
_ENV_NAME = re.compile(r"[\x20-\x3c\x3e-\x7e]+")
_ENV_FIELDS: Final = (
    "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName",
    "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
)  # fmt: skip
_VOLUME_FIELDS: Final = (
    "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace",
    "metadata.uid",
)  # fmt: skip
_KEYED_FIELD = re.compile(r"metadata\.(labels|annotations)\['.+'\]")
_RESOURCES: Final = (
    "limits.cpu", "limits.ephemeral-storage", "limits.memory",
    "requests.cpu", "requests.ephemeral-storage", "requests.memory",
)  # fmt: skip
_HANDLERS: Final = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_PROBE_NUMBERS: Final = (
    "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold",
    "failureThreshold",
)  # fmt: skip
_NOT_NEGATIVE = "must be greater than or equal to 0"
_MANY_SOURCES = "may not have more than one field specified at a time"
_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_MAX_INT32: Final = 2**31 - 1


def env(entries: list[Obj], field: str) -> list[FieldError]:
    """``env`` of a container."""
    out: list[FieldError] = []
    for i, entry in enumerate(entries):
        where, name = f"{field}[{i}]", entry.get("name")
        if not name:
            out.append(fe.required(f"{where}.name"))
        elif not _ENV_NAME.fullmatch(name):
            text = (
                "a valid environment variable name must consist only of printable ASCII "
                "characters other than '='"
            )
            out.append(fe.invalid(f"{where}.name", name, text))
        if "valueFrom" in entry:
            out += _env_source(entry, f"{where}.valueFrom")
    return out


def _env_source(entry: Obj, where: str) -> list[FieldError]:
    source = entry.get("valueFrom") or {}
    given = [kind for kind in _ENV_SOURCES if source.get(kind) is not None]
    if entry.get("value") and given:
        return [fe.invalid(where, "", "may not be specified when `value` is not empty")]
    if not given:
        text = (
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or "
            "`secretKeyRef`"
        )
        return [fe.invalid(where, "", text)]
    if len(given) > 1:
        return [fe.invalid(where, "", _MANY_SOURCES)]
    (kind,) = given
    reference, at = source[kind], f"{where}.{kind}"
    if kind == "fieldRef":
        return _field_reference(reference, at, _ENV_FIELDS)
    if kind == "resourceFieldRef":
        return _resource_reference(reference, at)
    return [fe.required(f"{at}.{key}") for key in ("name", "key") if not reference.get(key)]


def _field_reference(reference: Obj, at: str, known: tuple[str, ...]) -> list[FieldError]:
    path = reference.get("fieldPath")
    if not path:
        return [fe.required(f"{at}.fieldPath")]
    if path in known or _KEYED_FIELD.fullmatch(path):
        return []
    if path in _ENV_FIELDS or path in _VOLUME_FIELDS:
        return [fe.not_supported(f"{at}.fieldPath", path, known)]
    text = f"error converting fieldPath: field label not supported: {path}"
    return [fe.invalid(f"{at}.fieldPath", path, text)]


def _resource_reference(reference: Obj, at: str) -> list[FieldError]:
    name = reference.get("resource")
    if not name:
        return [fe.required(f"{at}.resource")]
    if name in _RESOURCES or name.partition(".")[2].startswith("hugepages-"):
        return []
    return [fe.not_supported(f"{at}.resource", name, _RESOURCES)]


def env_from(entries: list[Obj], field: str) -> list[FieldError]:
    """``envFrom`` of a container."""
    out: list[FieldError] = []
    for i, entry in enumerate(entries):
        where = f"{field}[{i}]"
        given = [kind for kind in ("configMapRef", "secretRef") if entry.get(kind) is not None]
        if not given:
            text = "must specify one of: `configMapRef` or `secretRef`"
            out.append(fe.invalid(where, "", text))
        elif len(given) > 1:
            out.append(fe.invalid(where, "", _MANY_SOURCES))
        elif not entry[given[0]].get("name"):
            out.append(fe.required(f"{where}.{given[0]}.name"))
    return out


def _port(value: Any, field: str) -> list[FieldError]:
    """A port's number or name; one that is missing is 0."""
    if isinstance(value, str):
        return [fe.invalid(field, value, text) for text in port_name(value)]
    return [fe.invalid(field, value or 0, text) for text in port_number(value or 0)]


def handler(section: Obj, field: str) -> list[FieldError]:
    """What a probe or a hook does: one of exec, httpGet, tcpSocket, grpc, sleep."""
    given = [kind for kind in _HANDLERS if section.get(kind) is not None]
    if not given:
        return [fe.required(field, "must specify a handler type")]
    out = [
        fe.forbidden(f"{field}.{kind}", "may not specify more than 1 handler type")
        for kind in given[1:]
    ]
    kind = given[0]
    action, where = section[kind], f"{field}.{kind}"
    if kind == "exec" and not action.get("command"):
        out.append(fe.required(f"{where}.command"))
    if kind == "httpGet" and action.get("scheme") not in ("HTTP", "HTTPS", None):
        out.append(fe.not_supported(f"{where}.scheme", action["scheme"], ("HTTP", "HTTPS")))
    if kind in ("httpGet", "tcpSocket", "grpc"):
        out += _port(action.get("port"), f"{where}.port")
    return out


def lifecycle(container: Obj, where: str) -> list[FieldError]:
    """Probes and hooks of a container."""
    out: list[FieldError] = []
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe, field = container.get(name), f"{where}.{name}"
        if probe is None:
            continue
        out += handler(probe, field)
        for key in _PROBE_NUMBERS:
            if (probe.get(key) or 0) < 0:
                out.append(fe.invalid(f"{field}.{key}", probe[key], _NOT_NEGATIVE))
        threshold = probe.get("successThreshold")
        if name != "readinessProbe" and threshold not in (None, 1):
            out.append(fe.invalid(f"{field}.successThreshold", threshold, "must be 1"))
    for name in ("postStart", "preStop"):
        hook = dig(container, "lifecycle", name)
        if hook is not None:
            out += handler(hook, f"{where}.lifecycle.{name}")
    return out


def volume_source(volume: Obj, where: str) -> list[FieldError]:
    """One entry of ``volumes`` beside its name."""
    kinds = [key for key, value in volume.items() if key != "name" and value is not None]
    out = [
        fe.forbidden(f"{where}.{kind}", "may not specify more than 1 volume type")
        for kind in kinds[1:]
    ]
    if not kinds:
        return [fe.required(where, "must specify a volume type")]
    kind = kinds[0]
    source, at = volume[kind], f"{where}.{kind}"
    if kind == "projected":
        for i, part in enumerate(items(source, "sources")):
            for name, section in part.items():
                out += _file_source(name, section, f"{at}.sources[{i}].{name}", "name")
    elif kind == "hostPath":
        if not source.get("path"):
            out.append(fe.required(f"{at}.path"))
        out += _paths(source, at, no_backsteps)
    elif kind == "persistentVolumeClaim" and not source.get("claimName"):
        out.append(fe.required(f"{at}.claimName"))
    else:
        out += _file_source(kind, source, at, "secretName" if kind == "secret" else "name")
    return out


def _file_source(kind: str, section: Obj, at: str, name_key: str) -> list[FieldError]:
    out: list[FieldError] = []
    entries = items(section, "items")
    if kind in ("configMap", "secret"):
        if not section.get(name_key):
            out.append(fe.required(f"{at}.{name_key}"))
        out += [
            fe.required(f"{at}.items[{i}].{key}")
            for i, entry in enumerate(entries)
            for key in ("key", "path")
            if not entry.get(key)
        ]
        for i, entry in enumerate(entries):
            out += _paths(entry, f"{at}.items[{i}]", file_path)
    elif kind == "downwardAPI":
        for i, entry in enumerate(entries):
            where = f"{at}.items[{i}]"
            if not entry.get("path"):
                out.append(fe.required(f"{where}.path"))
            out += _paths(entry, where, file_path)
            if entry.get("fieldRef") is not None:
                out += _field_reference(entry["fieldRef"], f"{where}.fieldRef", _VOLUME_FIELDS)
            elif entry.get("resourceFieldRef") is not None:
                out += _resource_reference(entry["resourceFieldRef"], f"{where}.resourceFieldRef")
            else:
                text = "one of fieldRef and resourceFieldRef is required"
                out.append(fe.required(where, text))
    elif kind == "serviceAccountToken":
        if not section.get("path"):
            out.append(fe.required(f"{at}.path"))
        out += _paths(section, at, file_path)
    return out


def _paths(section: Obj, at: str, check: Callable[[str], list[str]]) -> list[FieldError]:
    path = section.get("path") or ""
    return [fe.invalid(f"{at}.path", path, text) for text in check(path)]


def tolerations(entries: list[Obj], field: str) -> list[FieldError]:
    """``tolerations`` of a pod."""
    out: list[FieldError] = []
    for i, each in enumerate(entries):
        where, key, operator = f"{field}[{i}]", each.get("key"), each.get("operator") or ""
        if key:
            out += [fe.invalid(f"{where}.key", key, text) for text in qualified_name(key)]
        elif operator != "Exists":
            text = (
                'operator must be Exists when `key` is empty, which means "match all values '
                'and all keys"'
            )
            out.append(fe.invalid(f"{where}.operator", operator, text))
        if each.get("tolerationSeconds") is not None and each.get("effect") != "NoExecute":
            text = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            out.append(fe.invalid(f"{where}.effect", each.get("effect") or "", text))
        value = each.get("value") or ""
        if operator in ("", "Equal"):
            out += [fe.invalid(f"{where}.operator", value, text) for text in label_value(value)]
        elif operator != "Exists":
            out.append(fe.not_supported(f"{where}.operator", operator, ("Equal", "Exists")))
        elif value:
            text = "value must be empty when `operator` is 'Exists'"
            out.append(fe.invalid(f"{where}.operator", value, text))
        if each.get("effect") and each["effect"] not in _EFFECTS:
            out.append(fe.not_supported(f"{where}.effect", each["effect"], _EFFECTS))
    return out


def placement(spec: Obj, field: str) -> list[FieldError]:
    """``affinity`` and ``topologySpreadConstraints`` of a pod."""
    out: list[FieldError] = []
    base = f"{field}.affinity"
    required, preferred = (
        f"{when}DuringSchedulingIgnoredDuringExecution" for when in ("required", "preferred")
    )
    nodes = dig(spec, "affinity", "nodeAffinity") or {}
    if nodes.get(required) is not None:
        at = f"{base}.nodeAffinity.{required}.nodeSelectorTerms"
        terms = items(nodes, required, "nodeSelectorTerms")
        if not terms:
            out.append(fe.required(at, "must have at least one node selector term"))
        for i, term in enumerate(terms):
            out += _node_term(term, f"{at}[{i}]")
    for i, each in enumerate(items(nodes, preferred)):
        at = f"{base}.nodeAffinity.{preferred}[{i}]"
        out += _weight(each, at)
        out += _node_term(each.get("preference") or {}, f"{at}.preference")
    for kind in ("podAffinity", "podAntiAffinity"):
        section = dig(spec, "affinity", kind) or {}
        for i, term in enumerate(items(section, required)):
            out += _pod_term(term, f"{base}.{kind}.{required}[{i}]")
        for i, each in enumerate(items(section, preferred)):
            at = f"{base}.{kind}.{preferred}[{i}]"
            out += _weight(each, at)
            out += _pod_term(each.get("podAffinityTerm") or {}, f"{at}.podAffinityTerm")
    for i, each in enumerate(items(spec, "topologySpreadConstraints")):
        at = f"{field}.topologySpreadConstraints[{i}]"
        if (each.get("maxSkew") or 0) <= 0:
            skew = each.get("maxSkew") or 0
            out.append(fe.invalid(f"{at}.maxSkew", skew, "must be greater than zero"))
        if not each.get("topologyKey"):
            out.append(fe.required(f"{at}.topologyKey", "can not be empty"))
        action, known = each.get("whenUnsatisfiable"), ("DoNotSchedule", "ScheduleAnyway")
        if action not in known:
            out.append(fe.not_supported(f"{at}.whenUnsatisfiable", action or "", known))
    return out


def _weight(each: Obj, at: str) -> list[FieldError]:
    weight = each.get("weight") or 0
    if 1 <= weight <= 100:
        return []
    return [fe.invalid(f"{at}.weight", weight, "must be in the range 1-100")]


def _node_term(term: Obj, at: str) -> list[FieldError]:
    out: list[FieldError] = []
    for i, each in enumerate(items(term, "matchExpressions")):
        where, values = f"{at}.matchExpressions[{i}]", each.get("values") or []
        key, operator = each.get("key") or "", each.get("operator") or ""
        if operator in ("In", "NotIn") and not values:
            text = "must be specified when `operator` is 'In' or 'NotIn'"
            out.append(fe.required(f"{where}.values", text))
        elif operator in ("Exists", "DoesNotExist") and values:
            text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            out.append(fe.forbidden(f"{where}.values", text))
        elif operator in ("Gt", "Lt") and len(values) != 1:
            text = "must be specified single value when `operator` is 'Lt' or 'Gt'"
            out.append(fe.required(f"{where}.values", text))
        elif operator not in ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"):
            text = "not a valid selector operator"
            out.append(fe.invalid(f"{where}.operator", operator, text))
        out += [fe.invalid(f"{where}.key", key, text) for text in qualified_name(key)]
    return out


def _pod_term(term: Obj, at: str) -> list[FieldError]:
    if not term.get("topologyKey"):
        return [fe.required(f"{at}.topologyKey", "can not be empty")]
    return []


def identity(spec: Obj, field: str) -> list[FieldError]:
    """Host aliases, DNS, deadlines and gates of a pod."""
    out: list[FieldError] = []
    for i, alias in enumerate(items(spec, "hostAliases")):
        at, ip = f"{field}.hostAliases[{i}]", alias.get("ip") or ""
        try:
            ipaddress.ip_address(ip)
        except ValueError:
            text = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            out.append(fe.invalid(f"{at}.ip", ip, text))
        for name in alias.get("hostnames") or []:
            out += [fe.invalid(f"{at}.hostnames", name, text) for text in dns1123_subdomain(name)]
    if spec.get("dnsPolicy") == "None":
        if spec.get("dnsConfig") is None:
            text = "must provide `dnsConfig` when `dnsPolicy` is None"
            out.append(fe.required(f"{field}.dnsConfig", text))
        elif not dig(spec, "dnsConfig", "nameservers"):
            text = "must provide at least one DNS nameserver when `dnsPolicy` is None"
            out.append(fe.required(f"{field}.dnsConfig.nameservers", text))
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= _MAX_INT32:
        text = f"must be between 1 and {_MAX_INT32}, inclusive"
        out.append(fe.invalid(f"{field}.activeDeadlineSeconds", deadline, text))
    for i, gate in enumerate(items(spec, "readinessGates")):
        kind = gate.get("conditionType") or ""
        at = f"{field}.readinessGates[{i}].conditionType"
        out += [fe.invalid(at, kind, text) for text in qualified_name(kind)]
    return out
