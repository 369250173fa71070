"""Malformed pods are refused in the words of the real API server."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.apimachinery import defaults, validate_pods

C = "spec.containers[0]"


def errors(container: dict[str, Any], **spec: Any) -> list[str]:
    obj: dict[str, Any] = {
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "nginx", **container}], **spec},
    }
    defaults.pod(obj)
    return [str(each) for each in validate_pods.pod(obj)]


def env(source: dict[str, Any], **entry: Any) -> dict[str, Any]:
    return {"env": [{"name": "A", "valueFrom": source, **entry}]}


@pytest.mark.parametrize(
    ("container", "text"),
    [
        ({"env": [{"name": "A=B", "value": "x"}]}, f"{C}.env[0].name: Invalid value"),
        (env({}), f'{C}.env[0].valueFrom: Invalid value: "": must specify one of: `fieldRef`'),
        (
            env({"configMapKeyRef": {"name": "x"}}),
            f"{C}.env[0].valueFrom.configMapKeyRef.key: Required value",
        ),
        (
            env({"fieldRef": {"fieldPath": "spec.foo"}}),
            "error converting fieldPath: field label not supported: spec.foo",
        ),
        (
            env({"resourceFieldRef": {"resource": "limits.foo"}}),
            f'{C}.env[0].valueFrom.resourceFieldRef.resource: Unsupported value: "limits.foo"',
        ),
        ({"envFrom": [{"configMapRef": {}}]}, f"{C}.envFrom[0].configMapRef.name: Required value"),
        (
            {"livenessProbe": {}},
            f"{C}.livenessProbe: Required value: must specify a handler type",
        ),
        (
            {"readinessProbe": {"httpGet": {"port": 99999}}},
            f"{C}.readinessProbe.httpGet.port: Invalid value: 99999: must be between 1 and 65535",
        ),
        (
            {"livenessProbe": {"tcpSocket": {"port": 80}, "successThreshold": 2}},
            f"{C}.livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            {"lifecycle": {"preStop": {}}},
            f"{C}.lifecycle.preStop: Required value: must specify a handler type",
        ),
    ],
)
def test_a_malformed_container_is_refused(container: dict[str, Any], text: str) -> None:
    (found,) = errors(container)
    assert text in found


TERMS = "requiredDuringSchedulingIgnoredDuringExecution"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"volumes": [{"name": "v", "configMap": {}}]}, "configMap.name: Required value"),
        ({"volumes": [{"name": "v", "secret": {}}]}, "secret.secretName: Required value"),
        (
            {"volumes": [{"name": "v", "projected": {"sources": [{"configMap": {}}]}}]},
            "spec.volumes[0].projected.sources[0].configMap.name: Required value",
        ),
        (
            {"volumes": [{"name": "v", "downwardAPI": {"items": [{"path": "x"}]}}]},
            "one of fieldRef and resourceFieldRef is required",
        ),
        (
            {"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]},
            "may not specify more than 1 volume type",
        ),
        ({"hostAliases": [{"hostnames": ["a"]}]}, "spec.hostAliases[0].ip: Invalid value"),
        ({"dnsPolicy": "None"}, "must provide `dnsConfig` when `dnsPolicy` is None"),
        ({"activeDeadlineSeconds": 0}, "must be between 1 and 2147483647, inclusive"),
        ({"subdomain": "A_B"}, "spec.subdomain: Invalid value"),
        (
            {"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]},
            "value must be empty when `operator` is 'Exists'",
        ),
        (
            {"affinity": {"nodeAffinity": {TERMS: {}}}},
            "must have at least one node selector term",
        ),
        (
            {"affinity": {"podAntiAffinity": {TERMS: [{"labelSelector": {}}]}}},
            "topologyKey: Required value: can not be empty",
        ),
    ],
)
def test_a_malformed_spec_is_refused(spec: dict[str, Any], text: str) -> None:
    (found,) = errors({}, **spec)
    assert text in found


def test_a_pod_with_a_little_of_everything_is_fine() -> None:
    assert not errors(
        {
            "env": [
                {"name": "A", "value": ""},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            ],
            "envFrom": [{"secretRef": {"name": "s"}}],
            "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": "http"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        },
        hostNetwork=True,
        volumes=[{"name": "v"}, {"name": "w", "emptyDir": {}}],
        tolerations=[{"operator": "Exists"}],
        hostAliases=[{"ip": "10.0.0.1", "hostnames": ["a.b"]}],
    )
