"""Validation of the kinds that make pods, and of the small kinds (pkg/apis/*/validation)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulator.apimachinery import fielderrors as fe
from emulator.apimachinery.gotext import label_selector, string_map
from emulator.apimachinery.labels import SelectorError, from_label_selector
from emulator.apimachinery.names import check_labels, config_key, qualified_name
from emulator.apimachinery.objects import dig, items
from emulator.apimachinery.validate_pods import pod_spec

if TYPE_CHECKING:
    from emulator.apimachinery.fielderrors import FieldError
    from emulator.apimachinery.objects import Obj

_NOT_NEGATIVE = "must be greater than or equal to 0"
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
# Sum of all values of a ConfigMap or Secret (MaxSecretSize).
MAX_DATA_BYTES = 1024 * 1024


def selector_object(value: Obj, field: str) -> list[FieldError]:
    """A ``LabelSelector``."""
    out = check_labels(value.get("matchLabels"), f"{field}.matchLabels")
    for i, term in enumerate(items(value, "matchExpressions")):
        where = f"{field}.matchExpressions[{i}]"
        operator, values = term.get("operator"), term.get("values")
        if operator in ("In", "NotIn"):
            if not values:
                out.append(
                    fe.required(
                        f"{where}.values",
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    )
                )
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                out.append(
                    fe.forbidden(
                        f"{where}.values",
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    )
                )
        else:
            out.append(
                fe.invalid(f"{where}.operator", operator or "", "not a valid selector operator")
            )
        key = str(term.get("key") or "")
        out += [fe.invalid(f"{where}.key", key, text) for text in qualified_name(key)]
    return out


def _template(spec: Obj, *, check_selector: bool) -> list[FieldError]:
    template = spec.get("template") or {}
    labels = dig(template, "metadata", "labels")
    out: list[FieldError] = []
    if check_selector:
        try:
            selector = from_label_selector(spec.get("selector"))
        except SelectorError:
            selector = None
        matches = selector is not None and selector.matches(labels)
        if not matches:
            out.append(
                fe.invalid(
                    "spec.template.metadata.labels",
                    fe.Text(string_map(labels)),
                    "`selector` does not match template `labels`",
                )
            )
    out += check_labels(labels, "spec.template.labels")
    out += pod_spec(template.get("spec") or {}, "spec.template.spec")
    return out


def _selector(spec: Obj, word: str) -> list[FieldError]:
    selector = spec.get("selector")
    if not isinstance(selector, dict):
        return [fe.required("spec.selector")]
    out = selector_object(selector, "spec.selector")
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        out.append(
            fe.invalid(
                "spec.selector",
                fe.Text(label_selector(selector)),
                f"empty selector is invalid for {word}",
            )
        )
    return out


def _always(spec: Obj) -> list[FieldError]:
    policy = dig(spec, "template", "spec", "restartPolicy")
    if policy == "Always":
        return []
    return [fe.not_supported("spec.template.spec.restartPolicy", policy, ("Always",))]


def _not_negative(spec: Obj, *names: str) -> list[FieldError]:
    return [
        fe.invalid(f"spec.{name}", spec[name], _NOT_NEGATIVE)
        for name in names
        if isinstance(spec.get(name), int) and spec[name] < 0
    ]


def immutable_selector_update(new: Obj, old: Obj) -> list[FieldError]:
    """A workload keeps its selector."""
    after, before = dig(new, "spec", "selector"), dig(old, "spec", "selector")
    if after == before:
        return []
    return [fe.invalid("spec.selector", fe.Text(label_selector(after)), "field is immutable")]


def deployment(obj: Obj) -> list[FieldError]:
    """apps/v1 Deployment."""
    spec = obj.get("spec") or {}
    out = _not_negative(spec, "replicas")
    out += _selector(spec, "deployment")
    out += _template(spec, check_selector=True)
    out += _always(spec)
    out += _strategy(spec)
    out += _not_negative(spec, "minReadySeconds", "revisionHistoryLimit")
    deadline = spec.get("progressDeadlineSeconds")
    if isinstance(deadline, int):
        out += _not_negative(spec, "progressDeadlineSeconds")
        if deadline <= (spec.get("minReadySeconds") or 0):
            out.append(
                fe.invalid(
                    "spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds"
                )
            )
    return out


def _percent(value: Any) -> int | None:
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.endswith("%") and value[:-1].isdigit():
        return int(value[:-1])
    return None


def _strategy(spec: Obj) -> list[FieldError]:
    strategy = spec.get("strategy") or {}
    kind, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if kind == "Recreate":
        if rolling is not None:
            return [
                fe.forbidden(
                    "spec.strategy.rollingUpdate",
                    "may not be specified when strategy `type` is 'Recreate'",
                )
            ]
        return []
    if kind != "RollingUpdate":
        return [fe.not_supported("spec.strategy.type", kind, ("Recreate", "RollingUpdate"))]
    out: list[FieldError] = []
    for name in ("maxUnavailable", "maxSurge"):
        value = dig(rolling, name)
        number = _percent(value)
        where = f"spec.strategy.rollingUpdate.{name}"
        if number is None:
            out.append(
                fe.invalid(
                    where,
                    value,
                    "a valid percent string must be a numeric string followed by an ending '%' "
                    "(e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                )
            )
        elif number < 0:
            out.append(fe.invalid(where, value, _NOT_NEGATIVE))
    if (
        not out
        and not _percent(dig(rolling, "maxUnavailable"))
        and not _percent(dig(rolling, "maxSurge"))
    ):
        out.append(
            fe.invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                dig(rolling, "maxUnavailable"),
                "may not be 0 when `maxSurge` is 0",
            )
        )
    return out


def replica_set(obj: Obj) -> list[FieldError]:
    """apps/v1 ReplicaSet."""
    spec = obj.get("spec") or {}
    out = _not_negative(spec, "replicas", "minReadySeconds")
    out += _selector(spec, "deployment")
    return out + _template(spec, check_selector=True) + _always(spec)


def daemon_set(obj: Obj) -> list[FieldError]:
    """apps/v1 DaemonSet."""
    spec = obj.get("spec") or {}
    out = _selector(spec, "daemonset")
    out += _template(spec, check_selector=True) + _always(spec)
    return out + _not_negative(spec, "minReadySeconds", "revisionHistoryLimit")


def stateful_set(obj: Obj) -> list[FieldError]:
    """apps/v1 StatefulSet."""
    spec = obj.get("spec") or {}
    out = _not_negative(spec, "replicas")
    out += _selector(spec, "statefulset")
    return out + _template(spec, check_selector=True) + _always(spec)


def stateful_set_update(new: Obj, old: Obj) -> list[FieldError]:
    """Only a few fields of a StatefulSet may change."""
    free = (
        "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
    )  # fmt: skip
    after = {k: v for k, v in (new.get("spec") or {}).items() if k not in free}
    before = {k: v for k, v in (old.get("spec") or {}).items() if k not in free}
    if after == before:
        return []
    return [
        fe.forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "
            "'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and "
            "'minReadySeconds' are forbidden",
        )
    ]


def replication_controller(obj: Obj) -> list[FieldError]:
    """v1 ReplicationController."""
    spec = obj.get("spec") or {}
    out = _not_negative(spec, "replicas")
    if not spec.get("selector"):
        out.append(fe.required("spec.selector"))
    shadow = {**spec, "selector": {"matchLabels": spec.get("selector") or {}}}
    return out + _template(shadow, check_selector=True) + _always(spec)


def job(obj: Obj) -> list[FieldError]:
    """batch/v1 Job."""
    spec = obj.get("spec") or {}
    return _job_spec(spec)


def _job_spec(spec: Obj) -> list[FieldError]:
    out = _not_negative(spec, "parallelism", "completions", "backoffLimit")
    out += _template(spec, check_selector=False)
    policy = dig(spec, "template", "spec", "restartPolicy")
    if policy not in ("OnFailure", "Never"):
        out.append(
            fe.required("spec.template.spec.restartPolicy", 'valid values: "OnFailure", "Never"')
            if not policy
            else fe.not_supported(
                "spec.template.spec.restartPolicy", policy, ("OnFailure", "Never")
            )
        )
    return out


def cron_job(obj: Obj) -> list[FieldError]:
    """batch/v1 CronJob."""
    spec = obj.get("spec") or {}
    out: list[FieldError] = []
    schedule = spec.get("schedule")
    if not schedule:
        out.append(fe.required("spec.schedule"))
    elif len(str(schedule).split()) != 5 and not str(schedule).startswith("@"):
        count = len(str(schedule).split())
        out.append(
            fe.invalid(
                "spec.schedule",
                schedule,
                f"expected exactly 5 fields, found {count}: {str(schedule).split()}",
            )
        )
    template = dig(spec, "jobTemplate", "spec") or {}
    for error in _job_spec(template):
        out.append(error._replace(field="spec.jobTemplate." + error.field))  # noqa: PERF401
    return out


def config_data(obj: Obj) -> list[FieldError]:
    """Keys and size of a ConfigMap or Secret."""
    out: list[FieldError] = []
    total = 0
    for part in ("data", "binaryData"):
        for key, value in (obj.get(part) or {}).items():
            out += [fe.invalid(f"{part}[{key}]", key, text) for text in config_key(key)]
            total += len(str(value))
    if total > MAX_DATA_BYTES * 4 // 3:
        out.append(fe.too_long("data", MAX_DATA_BYTES))
    return out


def config_data_update(new: Obj, old: Obj) -> list[FieldError]:
    """An immutable ConfigMap or Secret stays as it is."""
    if not old.get("immutable"):
        return []
    text = "field is immutable when `immutable` is set"
    out = [] if new.get("immutable") else [fe.forbidden("immutable", text)]
    out += [fe.forbidden(p, text) for p in ("data", "binaryData") if new.get(p) != old.get(p)]
    return out


def secret_update(new: Obj, old: Obj) -> list[FieldError]:
    """A Secret keeps its type."""
    out = config_data_update(new, old)
    if new.get("type") != old.get("type"):
        out.insert(0, fe.invalid("type", new.get("type"), "field is immutable"))
    return out


def definition(obj: Obj) -> list[FieldError]:
    """apiextensions.k8s.io/v1 CustomResourceDefinition."""
    spec = obj.get("spec") or {}
    names = spec.get("names") or {}
    out: list[FieldError] = []
    if not spec.get("group"):
        out.append(fe.required("spec.group"))
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        known = ("Cluster", "Namespaced")
        out.append(fe.not_supported("spec.scope", spec.get("scope") or "", known))
    out += [fe.required(f"spec.names.{key}") for key in ("plural", "kind") if not names.get(key)]
    wanted = f"{names.get('plural', '')}.{spec.get('group', '')}"
    name = str(dig(obj, "metadata", "name") or "")
    if name and name != wanted:
        text = 'must be spec.names.plural+"."+spec.group'
        out.append(fe.invalid("metadata.name", name, text))
    versions = items(spec, "versions")
    if sum(bool(v.get("storage")) for v in versions) != 1:
        text = "must have exactly one version marked as storage version"
        out.append(fe.invalid("spec.versions", fe.Text("[]"), text))
    for i, version in enumerate(versions):
        if not dig(version, "schema", "openAPIV3Schema"):
            text = "schemas are required"
            out.append(fe.required(f"spec.versions[{i}].schema.openAPIV3Schema", text))
    return out


def endpoint_slice(obj: Obj) -> list[FieldError]:
    """discovery.k8s.io/v1 EndpointSlice."""
    known = ("FQDN", "IPv4", "IPv6")
    kind = obj.get("addressType")
    if not kind:
        return [fe.required("addressType")]
    return [] if kind in known else [fe.not_supported("addressType", kind, known)]
