"""What kubectl get prints for each kind, cell by cell."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.apimachinery.resources import Registry
from emulator.apimachinery.table import TableOptions, printer_for, table

NOW = 1_000_000.0
BORN = "1970-01-12T13:41:40Z"  # five minutes before NOW
REGISTRY = Registry()


def cells(plural: str, obj: dict[str, Any], group: str = "", version: str = "v1") -> list[Any]:
    obj = {**obj, "metadata": {"name": "n", "creationTimestamp": BORN, **obj.get("metadata", {})}}
    return printer_for(REGISTRY.get(group, version, plural)).row(obj, NOW)


def status_of(**pod: Any) -> list[Any]:
    spec = {"containers": [{"name": "c"}], **pod.pop("spec", {})}
    return cells("pods", {"spec": spec, **pod})[1:4]


def container(**state: Any) -> dict[str, Any]:
    return {"name": "c", "restartCount": 0, "ready": False, "state": state}


RUNNING = {**container(running={}), "ready": True}


@pytest.mark.parametrize(
    ("pod", "shown"),
    [
        ({"status": {"phase": "Pending"}}, ["0/1", "Pending", "0"]),
        ({"status": {"phase": "Running", "containerStatuses": [RUNNING]}}, ["1/1", "Running", "0"]),
        (
            {
                "status": {
                    "phase": "Pending",
                    "containerStatuses": [container(waiting={"reason": "ContainerCreating"})],
                }
            },
            ["0/1", "ContainerCreating", "0"],
        ),
        (
            {
                "status": {
                    "phase": "Running",
                    "containerStatuses": [
                        {
                            **container(waiting={"reason": "CrashLoopBackOff"}),
                            "restartCount": 3,
                            "lastState": {"terminated": {"finishedAt": BORN}},
                        }
                    ],
                }
            },
            ["0/1", "CrashLoopBackOff", "3 (5m ago)"],
        ),
        (
            {
                "status": {
                    "phase": "Failed",
                    "containerStatuses": [container(terminated={"exitCode": 2})],
                }
            },
            ["0/1", "ExitCode:2", "0"],
        ),
        (
            {
                "spec": {"initContainers": [{"name": "i"}, {"name": "j"}]},
                "status": {
                    "phase": "Pending",
                    "initContainerStatuses": [
                        container(terminated={"exitCode": 0}),
                        container(running={}),
                    ],
                },
            },
            ["0/1", "Init:1/2", "0"],
        ),
        (
            {
                "metadata": {"deletionTimestamp": BORN},
                "status": {"phase": "Running", "containerStatuses": [RUNNING]},
            },
            ["1/1", "Terminating", "0"],
        ),
        ({"status": {"phase": "Failed", "reason": "Evicted"}}, ["0/1", "Evicted", "0"]),
    ],
)
def test_pod_status(pod: dict[str, Any], shown: list[Any]) -> None:
    assert status_of(**pod) == shown


def test_services_show_addresses_and_ports() -> None:
    spec = {
        "type": "NodePort",
        "clusterIP": "10.96.0.5",
        "ports": [{"port": 80, "nodePort": 31000}, {"port": 53, "protocol": "UDP"}],
        "selector": {"b": "2", "a": "1"},
    }
    assert cells("services", {"spec": spec}) == [
        "n", "NodePort", "10.96.0.5", "<none>", "80:31000/TCP,53/UDP", "5m", "a=1,b=2",
    ]  # fmt: skip
    headless = {"clusterIPs": ["None"], "ports": []}
    assert cells("services", {"spec": headless})[1:5] == ["ClusterIP", "None", "<none>", "<none>"]
    balanced = {"type": "LoadBalancer", "ports": []}
    assert cells("services", {"spec": balanced})[3] == "<pending>"
    named = {"type": "ExternalName", "externalName": "example.com"}
    assert cells("services", {"spec": named})[2:4] == ["<none>", "example.com"]


def test_endpoints_show_three_and_count_the_rest() -> None:
    addresses = [{"ip": f"10.0.0.{i}"} for i in range(5)]
    subset = {"addresses": addresses, "ports": [{"port": 80}]}
    shown = cells("endpoints", {"subsets": [subset]})[1]
    assert shown == "10.0.0.0:80,10.0.0.1:80,10.0.0.2:80 + 2 more..."
    assert cells("endpoints", {})[1] == "<none>"
    slice_ = {"addressType": "IPv4", "endpoints": [{"addresses": ["1.1.1.1"]}], "ports": []}
    assert cells("endpointslices", slice_, "discovery.k8s.io")[1:4] == [
        "IPv4",
        "<unset>",
        "1.1.1.1",
    ]


def test_nodes_show_condition_roles_and_wide_columns() -> None:
    node = {
        "metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "Unknown"}],
            "addresses": [{"type": "InternalIP", "address": "172.17.4.201"}],
            "nodeInfo": {"kubeletVersion": "v1.32.0", "osImage": "o"},
        },
    }
    assert cells("nodes", node) == [
        "n", "NotReady,SchedulingDisabled", "control-plane", "5m", "v1.32.0", "172.17.4.201",
        "<none>", "o", "<unknown>", "<unknown>",
    ]  # fmt: skip


def test_workloads_show_counts_containers_and_selectors() -> None:
    spec = {
        "replicas": 3,
        "selector": {"matchLabels": {"app": "w"}},
        "template": {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b"}]}},
    }
    status = {"replicas": 2, "readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1}
    obj = {"spec": spec, "status": status}
    wide = ["a,b", "x,", "app=w"]
    assert cells("deployments", obj, "apps") == ["n", "1/3", 2, 1, "5m", *wide]
    assert cells("replicasets", obj, "apps") == ["n", 3, 2, 1, "5m", *wide]
    assert cells("statefulsets", obj, "apps") == ["n", "1/3", "5m", "a,b", "x,"]
    assert cells("daemonsets", {"spec": spec}, "apps")[1:8] == [0, 0, 0, 0, 0, "<none>", "5m"]


def test_events_count_and_name_their_object() -> None:
    event = {
        "type": "Normal",
        "reason": "Scheduled",
        "message": "Successfully assigned\n",
        "involvedObject": {"kind": "Pod", "name": "p"},
        "source": {"component": "kubelet", "host": "node-0"},
        "lastTimestamp": BORN,
        "count": 4,
    }
    assert cells("events", event) == [
        "5m", "Normal", "Scheduled", "pod/p", "", "kubelet, node-0", "Successfully assigned",
        "<unknown>", 4, "n",
    ]  # fmt: skip
    modern = {"eventTime": "1970-01-12T13:46:30.000000Z", "reportingComponent": "scheduler"}
    assert cells("events", modern)[0] == "10s"
    assert cells("events", modern)[8] == 1


def test_every_resource_has_as_many_cells_as_columns() -> None:
    for resource in REGISTRY.all():
        printer = printer_for(resource)
        row = printer.row({"metadata": {"name": "n"}}, NOW)
        assert len(row) == len(printer.columns), resource.plural


def test_a_table_has_headers_once_and_rows_with_metadata() -> None:
    printer = printer_for(REGISTRY.get("", "v1", "namespaces"))
    obj = {"metadata": {"name": "n"}, "status": {"phase": "Active"}}
    first = table(printer, [obj], NOW, {"resourceVersion": "7"})
    assert [c["name"] for c in first["columnDefinitions"]] == ["Name", "Status", "Age"]
    assert first["columnDefinitions"][0]["format"] == "name"
    assert first["rows"] == [
        {
            "cells": ["n", "Active", "<unknown>"],
            "object": {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": {"name": "n"},
            },
        }
    ]
    later = table(printer, [obj], NOW, {}, TableOptions("None", False))
    assert later["columnDefinitions"] is None
    assert set(later["rows"][0]) == {"cells"}


def test_restarts_of_sidecars_count_and_those_of_init_containers_do_not() -> None:
    sidecar = {
        "name": "proxy",
        "restartCount": 2,
        "started": True,
        "ready": True,
        "state": {"running": {}},
        "lastState": {"terminated": {"finishedAt": BORN}},
    }
    once = {
        "name": "once",
        "restartCount": 5,
        "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
    }
    spec = {"initContainers": [{"name": "once"}, {"name": "proxy", "restartPolicy": "Always"}]}
    pod = {"phase": "Running", "initContainerStatuses": [once, sidecar]}
    pod["containerStatuses"] = [RUNNING]
    assert status_of(spec=spec, status=pod) == ["2/2", "Running", "2 (5m ago)"]
    # Initialized once, an init container that fails again changes nothing.
    once["state"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
    pod["conditions"] = [{"type": "Initialized", "status": "True"}]
    assert status_of(spec=spec, status=pod) == ["1/2", "Init:Error", "0"]


def test_a_load_balancer_s_addresses_are_sorted_and_each_told_once() -> None:
    ingress = [
        {"ip": "10.0.0.9"},
        {"hostname": "b.example"},
        {"ip": "10.0.0.10"},
        {"ip": "10.0.0.9"},
    ]
    service = {
        "spec": {"type": "LoadBalancer", "clusterIP": "10.3.0.1", "externalIPs": ["1.1.1.1"]},
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    assert cells("services", service)[3] == "10.0.0.10,10.0.0.9,b.example,1.1.1.1"


@pytest.mark.parametrize(
    ("hosts", "shown"),
    [
        ([], "*"),
        ([""], "*"),
        (["a", "", "b"], "a,b"),
        (["a", "b", "c", "d", "e"], "a,b,c + 2 more..."),
        (["a", "b", "c", ""], "a,b,c + 1 more..."),
    ],
)
def test_an_ingress_shows_three_hosts(hosts: list[str], shown: str) -> None:
    rules = [{"host": host} if host else {} for host in hosts]
    ingress = {"spec": {"rules": rules}, "status": {}}
    assert cells("ingresses", ingress, "networking.k8s.io")[2] == shown


def test_an_event_without_times_or_source_says_what_it_knows() -> None:
    event = {
        "eventTime": BORN,
        "reportingComponent": "kubelet",
        "reportingInstance": "node-1",
        "involvedObject": {"kind": "Node"},
        "series": None,
    }
    row = cells("events", event)
    assert (row[0], row[3], row[5], row[7], row[8]) == ("5m", "node", "kubelet, node-1", "5m", 1)
    assert cells("events", {"firstTimestamp": BORN, "count": 4})[0] == "5m"


@pytest.mark.parametrize(
    ("metrics", "current", "shown"),
    [
        ([], [], "<none>"),
        ([("Resource", {"name": "cpu"}, {"averageUtilization": 50})], [], "cpu: <unknown>/50%"),
        ([("Resource", {"name": "cpu"}, {})], [], "cpu: <unknown>/<auto>"),
        (
            [("ContainerResource", {"name": "memory"}, {"averageValue": "1Gi"})],
            [("containerResource", {"averageValue": "12Mi"})],
            "memory: 12Mi/1Gi",
        ),
        ([("Pods", {}, {"averageValue": "10"})], [("pods", {"averageValue": "7"})], "7/10"),
        ([("Object", {}, {"value": "10"})], [], "<unknown>/10"),
        ([("External", {}, {"averageValue": "10"})], [], "<unknown>/10 (avg)"),
        ([("Odd", {}, {})], [], "<unknown type>"),
        (
            [("Object", {}, {"value": "1"})] * 4,
            [("object", {"value": "0"})],
            "0/1, <unknown>/1 + 2 more...",
        ),
    ],
)
def test_what_an_autoscaler_looks_at(metrics: Any, current: Any, shown: str) -> None:
    spec = [
        {"type": kind, (kind[:1].lower() + kind[1:]): {**more, "target": target}}
        for kind, more, target in metrics
    ]
    status = [{field: {"current": values}} for field, values in current]
    scaler = {"spec": {"metrics": spec, "maxReplicas": 1}, "status": {"currentMetrics": status}}
    row = cells("horizontalpodautoscalers", scaler, "autoscaling", "v2")
    assert row[2] == shown


def test_a_port_of_a_slice_without_a_number_has_its_name() -> None:
    slice_ = {"ports": [{"name": "dns"}, {"name": "x", "port": 53}, {}]}
    assert cells("endpointslices", slice_, "discovery.k8s.io")[2] == "dns,53,*"
