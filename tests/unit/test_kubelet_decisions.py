"""The kubelet's pure parts: actions, statuses, environment, volumes, recovery, the node."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from agents.kubelet.actions import compute_actions
from agents.kubelet.config import KubeletConfig
from agents.kubelet.environment import (
    ContainerConfigError,
    command_line,
    container_environment,
    expand,
    service_environment,
)
from agents.kubelet.node import node_status
from agents.kubelet.probe_state import ProbeTracker
from agents.kubelet.record import PodRecord, State
from agents.kubelet.recover import recover_record
from agents.kubelet.spec import PodSpec, ProbeSpec
from agents.kubelet.status import build_status, pod_phase, qos_class
from agents.kubelet.volumes import VolumeError, build_volumes
from emulator.kubeclient.config import KubeConfig

CONFIG = KubeletConfig(
    node_name="node-0",
    node_ip="172.17.4.201",
    underlay_host="127.9.1.1",
    kubeconfig=KubeConfig(server="http://127.0.0.1:1"),
    state_dir=Path("/nowhere"),
)
NOW = 1_700_000_000.0


def make_pod(*containers: dict[str, Any], **spec: Any) -> PodSpec:
    names = containers or ({"name": "web", "image": "nginx"},)
    return PodSpec.parse(
        {
            "metadata": {
                "uid": "u1",
                "namespace": "default",
                "name": "web-0",
                "labels": {"a": "b"},
            },
            "spec": {"containers": list(names), **spec},
        }
    )


def make_record(pod: PodSpec, **states: State) -> PodRecord:
    record = PodRecord(pod.uid, NOW, sandbox_id="s1", ip="10.2.59.2")
    for name, state in states.items():
        container = record.container(name)
        container.run("c" * 64, "img", NOW)
        container.ready = container.started = state is State.RUNNING
        if state is State.TERMINATED:
            container.end(0, "Completed", "", NOW + 1)
    return record


def test_a_new_pod_wants_a_sandbox_then_all_containers() -> None:
    pod = make_pod({"name": "a", "image": "x"}, {"name": "b", "image": "y"})
    record = PodRecord(pod.uid, NOW)
    assert compute_actions(pod, record, NOW).create_sandbox
    record.sandbox_id = "s"
    assert compute_actions(pod, record, NOW).start == ("a", "b")


def test_init_containers_run_one_after_the_other() -> None:
    pod = make_pod(
        initContainers=[{"name": "one", "image": "x"}, {"name": "two", "image": "x"}],
    )
    record = PodRecord(pod.uid, NOW, sandbox_id="s")
    assert compute_actions(pod, record, NOW).start == ("one",)
    record.container("one").run("c", "i", NOW)
    assert compute_actions(pod, record, NOW).start == ()
    record.container("one").end(0, "Completed", "", NOW)
    assert compute_actions(pod, record, NOW).start == ("two",)
    record.container("two").run("c", "i", NOW)
    record.container("two").end(0, "Completed", "", NOW)
    assert compute_actions(pod, record, NOW).start == ("web",)


def test_a_sidecar_starts_before_and_runs_beside_the_others() -> None:
    pod = make_pod(initContainers=[{"name": "side", "image": "x", "restartPolicy": "Always"}])
    record = PodRecord(pod.uid, NOW, sandbox_id="s")
    assert compute_actions(pod, record, NOW).start == ("side",)
    record.container("side").run("c", "i", NOW)
    assert compute_actions(pod, record, NOW).start == ("web",)


@pytest.mark.parametrize(
    ("policy", "code", "start", "finished"),
    [
        ("Always", 0, ("web",), False),
        ("OnFailure", 0, (), True),
        ("OnFailure", 1, ("web",), False),
        ("Never", 1, (), True),
    ],
)
def test_the_restart_policy_decides(
    policy: str, code: int, start: tuple[str, ...], finished: bool
) -> None:
    pod = make_pod(restartPolicy=policy)
    record = make_record(pod, web=State.RUNNING)
    record.container("web").end(code, "Error", "", NOW)
    actions = compute_actions(pod, record, NOW)
    assert (actions.start, actions.finished) == (start, finished)


def test_crashes_back_off_ten_seconds_doubling_to_five_minutes() -> None:
    pod, now = make_pod(), NOW
    record = make_record(pod)
    state, waits = record.container("web"), []
    for _ in range(8):
        state.run("c", "i", now)
        state.end(1, "Error", "", now)
        waits.append(state.next_try_at - now)
        now = state.next_try_at
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    state.run("c", "i", now)
    state.end(1, "Error", "", now + 601)
    assert state.next_try_at == now + 601


def test_a_crash_loop_says_so_and_wakes_when_it_is_over() -> None:
    pod = make_pod()
    record = make_record(pod)
    state = record.container("web")
    for _ in range(2):
        state.run("c", "i", NOW)
        state.end(1, "Error", "", NOW)
    actions = compute_actions(pod, record, NOW + 1)
    assert actions.wake_at == NOW + 10
    assert actions.back_off[0].reason == "CrashLoopBackOff"
    assert actions.back_off[0].message == (
        "back-off 10s restarting failed container=web pod=web-0_default(u1)"
    )
    assert actions.back_off[0].event == (
        "Back-off restarting failed container web in pod web-0_default(u1)"
    )
    state.wait("CrashLoopBackOff", actions.back_off[0].message)
    assert pod_phase(pod, record) == "Running"
    assert compute_actions(pod, record, NOW + 10).start == ("web",)
    assert state.restart_count == 1


def test_a_failed_pull_turns_into_a_back_off() -> None:
    pod = make_pod()
    record = make_record(pod)
    state = record.container("web")
    state.pull_failed("no such image", NOW)
    assert compute_actions(pod, record, NOW).back_off == ()
    (shown,) = compute_actions(pod, record, NOW + 2).back_off
    assert (shown.reason, shown.event) == ("ImagePullBackOff", 'Back-off pulling image "nginx"')
    state.wait(shown.reason, shown.message)
    assert compute_actions(pod, record, NOW + 3).back_off[0].message == shown.message
    assert shown.message == 'Back-off pulling image "nginx": ErrImagePull: no such image'
    assert compute_actions(pod, record, NOW + 10).start == ("web",)
    assert pod_phase(pod, record) == "Pending"


def test_the_status_of_a_running_pod() -> None:
    pod = make_pod()
    status = build_status(pod, make_record(pod, web=State.RUNNING), CONFIG, NOW)
    assert (status["phase"], status["podIP"], status["hostIP"]) == (
        "Running",
        "10.2.59.2",
        "172.17.4.201",
    )
    assert status["startTime"] == "2023-11-14T22:13:20Z"
    (container,) = status["containerStatuses"]
    assert container["containerID"] == "containerd://" + "c" * 64
    assert container["state"] == {"running": {"startedAt": "2023-11-14T22:13:20Z"}}
    assert {each["type"]: each["status"] for each in status["conditions"]} == {
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "Ready": "True",
        "ContainersReady": "True",
        "PodScheduled": "True",
    }


def test_an_unready_container_is_named_in_the_condition() -> None:
    pod = make_pod()
    record = make_record(pod, web=State.RUNNING)
    record.container("web").ready = False
    ready = next(
        each
        for each in build_status(pod, record, CONFIG, NOW)["conditions"]
        if each["type"] == "Ready"
    )
    assert ready["reason"] == "ContainersNotReady"
    assert ready["message"] == "containers with unready status: [web]"


def test_conditions_keep_their_times_and_those_of_others_stay() -> None:
    obj = make_pod().obj | {
        "status": {
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
                {"type": "DisruptionTarget", "status": "True"},
            ]
        }
    }
    pod = PodSpec.parse(obj)
    conditions = build_status(pod, make_record(pod, web=State.RUNNING), CONFIG, NOW)["conditions"]
    table = {each["type"]: each for each in conditions}
    assert table["Ready"]["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert "DisruptionTarget" in table


@pytest.mark.parametrize(
    ("policy", "code", "phase"),
    [
        ("Never", 0, "Succeeded"),
        ("Never", 3, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("Always", 0, "Running"),
    ],
)
def test_phases_of_ended_containers(policy: str, code: int, phase: str) -> None:
    pod = make_pod(restartPolicy=policy)
    record = make_record(pod, web=State.RUNNING)
    record.container("web").end(code, "Error", "", NOW)
    assert pod_phase(pod, record) == phase


@pytest.mark.parametrize(
    ("resources", "qos"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "0.5"}}, "Burstable"),
    ],
)
def test_qos(resources: dict[str, Any], qos: str) -> None:
    assert qos_class(make_pod({"name": "a", "image": "x", "resources": resources})) == qos


def test_a_restarted_node_counts_one_restart_more() -> None:
    obj = make_pod().obj | {
        "status": {
            "phase": "Running",
            "podIP": "10.2.59.9",
            "startTime": "2023-11-14T22:13:20Z",
            "containerStatuses": [
                {
                    "name": "web",
                    "containerID": "containerd://abc",
                    "restartCount": 2,
                    "state": {"running": {"startedAt": "2023-11-14T22:13:20Z"}},
                }
            ],
        }
    }
    pod = PodSpec.parse(obj)
    record = recover_record(pod, NOW + 60)
    assert (record.start_time, record.ip) == (NOW, "")
    state = record.container("web")
    assert state.ended is not None
    assert (state.ended.exit_code, state.ended.reason) == (255, "Unknown")
    record.sandbox_id = "new"
    assert compute_actions(pod, record, NOW + 60).start == ("web",)
    state.run("def", "i", NOW + 60)
    assert state.restart_count == 3


def test_a_pod_that_was_over_stays_over() -> None:
    obj = make_pod(restartPolicy="Never").obj | {
        "status": {
            "phase": "Succeeded",
            "podIP": "10.2.59.9",
            "containerStatuses": [
                {
                    "name": "web",
                    "containerID": "containerd://abc",
                    "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
                }
            ],
        }
    }
    pod = PodSpec.parse(obj)
    record = recover_record(pod, NOW)
    assert compute_actions(pod, record, NOW).finished
    assert pod_phase(pod, record) == "Succeeded"
    assert record.ip == "10.2.59.9"


def service(name: str, ip: str, *ports: dict[str, Any], namespace: str = "default") -> Any:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ip, "ports": list(ports)},
    }


def test_service_variables_come_in_both_forms() -> None:
    services = [
        service("kubernetes", "10.3.0.1", {"name": "https", "port": 443}),
        service("redis-master", "10.3.0.103", {"port": 6379, "protocol": "TCP"}),
        service("headless", "None", {"port": 1}),
        service("other", "10.3.0.9", {"port": 1}, namespace="kube-system"),
    ]
    assert service_environment(services, "default") == {
        "KUBERNETES_SERVICE_HOST": "10.3.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "KUBERNETES_SERVICE_PORT_HTTPS": "443",
        "KUBERNETES_PORT": "tcp://10.3.0.1:443",
        "KUBERNETES_PORT_443_TCP": "tcp://10.3.0.1:443",
        "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
        "KUBERNETES_PORT_443_TCP_PORT": "443",
        "KUBERNETES_PORT_443_TCP_ADDR": "10.3.0.1",
        "REDIS_MASTER_SERVICE_HOST": "10.3.0.103",
        "REDIS_MASTER_SERVICE_PORT": "6379",
        "REDIS_MASTER_PORT": "tcp://10.3.0.103:6379",
        "REDIS_MASTER_PORT_6379_TCP": "tcp://10.3.0.103:6379",
        "REDIS_MASTER_PORT_6379_TCP_PROTO": "tcp",
        "REDIS_MASTER_PORT_6379_TCP_PORT": "6379",
        "REDIS_MASTER_PORT_6379_TCP_ADDR": "10.3.0.103",
    }
    assert "KUBERNETES_SERVICE_HOST" in service_environment(services, "elsewhere")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)-$(B)", "1-$(B)"),
        ("$$(A)", "$(A)"),
        ("$A ${A}", "$A ${A}"),
        ("$(A", "$(A"),
    ],
)
def test_expansion_is_that_of_kubernetes(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


def environment(pod: PodSpec, **objects: Any) -> dict[str, str]:
    return container_environment(
        pod,
        pod.containers[0],
        CONFIG,
        image_env={"PATH": "/bin"},
        services=[],
        lookup=lambda kind, name: objects.get(f"{kind}_{name}"),
        hostname="web-0",
        pod_ip="10.2.59.2",
    )


def test_environment_takes_every_kind_of_source() -> None:
    env = [
        {"name": "PLAIN", "value": "v"},
        {"name": "EXPANDED", "value": "$(PLAIN)-$(HOSTNAME)"},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
        {"name": "CM", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    from_ = [{"prefix": "P_", "configMapRef": {"name": "c"}}]
    pod = make_pod({"name": "a", "image": "x", "env": env, "envFrom": from_})
    secret = {"data": {"k": base64.b64encode(b"hidden").decode()}}
    found = environment(pod, configmap_c={"data": {"k": "cm", "bad key": "x"}}, secret_s=secret)
    assert found == {
        "PATH": "/bin",
        "HOSTNAME": "web-0",
        "P_k": "cm",
        "PLAIN": "v",
        "EXPANDED": "v-web-0",
        "IP": "10.2.59.2",
        "LABEL": "b",
        "CM": "cm",
        "SECRET": "hidden",
        "HOME": "/root",
    }


def test_a_missing_reference_is_named() -> None:
    reference = {"configMapKeyRef": {"name": "c", "key": "k"}}
    pod = make_pod({"name": "a", "image": "x", "env": [{"name": "V", "valueFrom": reference}]})
    with pytest.raises(ContainerConfigError, match=r'^configmap "c" not found$'):
        environment(pod)
    with pytest.raises(ContainerConfigError, match=r"^couldn't find key k in ConfigMap default/c$"):
        environment(pod, configmap_c={"data": {}})


@pytest.mark.parametrize(
    ("command", "args", "argv"),
    [
        ([], [], ("entry", "default")),
        ([], ["x"], ("entry", "x")),
        (["run"], [], ("run",)),
        (["run"], ["$(A)"], ("run", "1")),
    ],
)
def test_command_and_args_override_as_documented(
    command: list[str], args: list[str], argv: tuple[str, ...]
) -> None:
    pod = make_pod({"name": "a", "image": "x", "command": command, "args": args})
    assert command_line(pod.containers[0], ["entry"], ["default"], {"A": "1"}) == argv


def test_volumes_become_files() -> None:
    projected = {
        "sources": [
            {"serviceAccountToken": {"path": "token"}},
            {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {
                "downwardAPI": {
                    "items": [
                        {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
                    ]
                }
            },
        ]
    }
    pod = make_pod(
        volumes=[
            {"name": "conf", "configMap": {"name": "c"}},
            {"name": "kube-api-access", "projected": projected},
            {"name": "tmp", "emptyDir": {}},
        ]
    )
    objects = {"c": {"data": {"f": "text"}}, "ca": {"data": {"ca.crt": "PEM"}}}
    volumes = build_volumes(
        pod, CONFIG, lambda _, name: objects.get(name), lambda audience: "tok", "10.2.59.2"
    )
    assert volumes["conf"].files == {"f": b"text"}
    assert volumes["kube-api-access"].files == {
        "token": b"tok",
        "ca.crt": b"PEM",
        "namespace": b"default",
    }
    assert (volumes["conf"].read_only, volumes["tmp"].read_only) == (True, False)


def test_a_missing_volume_source_is_failed_mount() -> None:
    pod = make_pod(volumes=[{"name": "conf", "configMap": {"name": "c"}}])
    with pytest.raises(VolumeError) as error:
        build_volumes(pod, CONFIG, lambda kind, name: None, lambda audience: "", "")
    assert str(error.value) == (
        'MountVolume.SetUp failed for volume "conf" : configmap "c" not found'
    )


def test_probe_verdicts_follow_the_thresholds() -> None:
    spec = ProbeSpec.parse(
        {"tcpSocket": {"port": 80}, "failureThreshold": 2, "successThreshold": 2}
    )
    assert spec is not None
    tracker = ProbeTracker(spec, initial=False)
    assert [tracker.observe(True), tracker.observe(True)] == [False, True]
    assert [tracker.observe(False), tracker.observe(True)] == [False, False]
    assert [tracker.observe(False), tracker.observe(False)] == [False, True]
    assert tracker.failed_for_good()


def test_the_node_speaks_the_real_texts() -> None:
    status = node_status(
        CONFIG,
        not_ready="cni plugin not initialized",
        known=None,
        boot_id="0-0",
        now=NOW,
        port=10250,
    )
    ready = status["conditions"][-1]
    assert (ready["status"], ready["reason"]) == ("False", "KubeletNotReady")
    assert ready["message"] == (
        "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
        "message:Network plugin returns error: cni plugin not initialized"
    )
    known = {"status": status}
    later = node_status(CONFIG, not_ready=None, known=known, boot_id="0-0", now=NOW + 5, port=10250)
    table = {each["type"]: each for each in later["conditions"]}
    assert table["NetworkUnavailable"]["reason"] == "FlannelIsUp"
    assert table["Ready"]["lastTransitionTime"] == "2023-11-14T22:13:25Z"
    assert table["PIDPressure"]["lastTransitionTime"] == "2023-11-14T22:13:20Z"
    assert table["PIDPressure"]["lastHeartbeatTime"] == "2023-11-14T22:13:25Z"


def test_a_volume_that_cannot_be_filled_is_tried_ever_more_rarely() -> None:
    """exponentialbackoff.go: 500 ms, doubled up to 2 min 2 s."""
    record = PodRecord("u1", NOW)
    delays = []
    for _ in range(10):
        record.mount_failed(NOW)
        delays.append(record.mount_try_at - NOW)
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 64, 122, 122]


def test_a_failed_sync_comes_again_after_ten_to_fifteen_seconds() -> None:
    """pod_workers.go: 10 s, 1 s while only the network is not ready, half as much more at most."""
    record = PodRecord("u1", NOW)
    delays = []
    for share, transient in ((0.0, False), (0.5, False), (1.0, False), (0.0, True), (1.0, True)):
        record.sync_failed(NOW, share, transient=transient)
        delays.append(record.sync_try_at - NOW)
    assert delays == [10, 12.5, 15, 1, 1.5]
    blocked, crashed = record.container("blocked"), record.container("crashed")
    blocked.sync_failed("CreateContainerConfigError", 'secret "s" not found', NOW, 0.5)
    assert (blocked.next_try_at - NOW, blocked.message) == (12.5, 'secret "s" not found')
    for _ in range(2):
        crashed.run("id", "image", NOW)
        crashed.end(1, "Error", "", NOW)
    assert crashed.next_try_at == NOW + 10
    record.try_again()
    assert (record.sync_try_at, blocked.next_try_at) == (0, 0)
    assert crashed.next_try_at == NOW + 10, "a new label does not make it crash sooner"


def test_a_resource_reference_counts_in_its_divisor() -> None:
    resources = {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}
    references = {
        "CPU": {"resource": "limits.cpu"},
        "MILLI": {"resource": "limits.cpu", "divisor": "1m"},
        "ASKED": {"resource": "requests.memory"},
        "MIB": {"resource": "requests.memory", "divisor": "1Mi"},
        "WHOLE": {"resource": "limits.memory", "divisor": "1Mi"},
        "NONE": {"resource": "requests.cpu"},
    }
    env = [{"name": k, "valueFrom": {"resourceFieldRef": v}} for k, v in references.items()]
    pod = make_pod({"name": "c", "image": "nginx", "resources": resources, "env": env})
    found = container_environment(
        pod,
        pod.containers[0],
        CONFIG,
        image_env={},
        services=(),
        lookup=lambda kind, name: None,
        hostname="h",
        pod_ip="10.2.59.2",
    )
    assert [found[name] for name in references] == ["2", "1500", "67108864", "64", "8192", "0"]
    item = {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}}
    with_volume = make_pod(
        {"name": "c", "image": "nginx", "resources": resources},
        volumes=[{"name": "v", "downwardAPI": {"items": [item]}}],
    )
    volumes = build_volumes(
        with_volume, CONFIG, lambda kind, name: None, lambda audience: "", "10.2.59.2"
    )
    assert volumes["v"].files == {"cpu": b"2"}
