"""A kubelet runs pods and tells of them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import TYPE_CHECKING, Any

import aiohttp

from agents.kubelet import record
from emulator.shell.http import Exchange
from emulator.shell.registry import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from emulator.shell.context import ShellContext

from tests.kubelet_world import NGINX, SUBNET_ENV, FakeApi, World, node


async def test_a_pod_runs_and_answers_at_its_address(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create("web", NGINX)
        ip = await world.running("web")
        assert ip == "10.2.59.2"
        assert await world.fetch(ip) == 200
        status = world.status("web")
        assert (status["phase"], status["hostIP"]) == ("Running", "172.17.4.201")
        container = world.container("web")
        assert container["containerID"].startswith("containerd://")
        assert container["imageID"].startswith("docker.io/library/nginx@sha256:")
        await world.api.until(lambda: "Started" in world.reasons("web"))
        assert set(world.reasons("web")) == {"Pulling", "Pulled", "Created", "Started"}
        pod = world.kernel.netns(world.kernel.netns_names()[1])
        eth0 = pod.link("eth0")
        assert (eth0.mtu, len(pod.routes())) == (1450, 3)
        names = [link.name for link in world.kernel.root.links()]
        assert "cni0" in names


async def test_a_pod_is_shown_being_created_before_it_runs(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create("web", NGINX)
        await world.running("web")
        assert world.api.states == ["waiting", "running"]


async def test_the_2017_era_has_its_own_addresses_and_ids(tmp_path: Path) -> None:
    async with node(tmp_path, era="2017") as world:
        world.create("web", NGINX)
        await world.running("web")
        pod = world.kernel.netns(world.kernel.netns_names()[1])
        assert pod.link("eth0").mac.hex(":") == "0a:58:0a:02:3b:02"
        assert world.kernel.root.link("cni0").mac.hex(":") == "0a:58:0a:02:3b:01"
        assert world.container("web")["containerID"].startswith("docker://")


async def test_the_node_is_not_ready_until_flannel_has_written_its_file(tmp_path: Path) -> None:
    async with node(tmp_path, ready=False) as world:

        def conditions() -> dict[str, Any]:
            status = world.api.objects["/api/v1/nodes/node-0"].get("status", {})
            return {each["type"]: each for each in status.get("conditions", ())}

        assert conditions()["Ready"]["reason"] == "KubeletNotReady"
        world.create("web", NGINX)
        await world.api.until(lambda: "NetworkNotReady" in world.reasons("web"))
        (tmp_path / "run/flannel/subnet.env").write_text(SUBNET_ENV)
        await world.api.until(lambda: conditions()["Ready"]["status"] == "True")
        assert conditions()["NetworkUnavailable"]["reason"] == "FlannelIsUp"
        await world.running("web")
        lease = world.api.objects[
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-0"
        ]
        assert lease["spec"]["leaseDurationSeconds"] == 40


async def test_what_others_say_of_the_node_is_put_right(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        path = "/api/v1/nodes/node-0"

        def ready() -> dict[str, Any]:
            conditions = world.api.objects[path]["status"]["conditions"]
            found: dict[str, Any] = next(each for each in conditions if each["type"] == "Ready")
            return found

        await world.api.until(lambda: ready()["status"] == "True")
        obj = json.loads(json.dumps(world.api.objects[path]))
        for each in obj["status"]["conditions"]:
            each |= {"status": "Unknown", "reason": "NodeStatusUnknown"}
        world.api.put(path, obj)
        await world.api.until(lambda: ready()["reason"] == "KubeletReady")


async def test_what_others_say_of_a_pod_is_put_right(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create("web", NGINX)
        await world.running("web")
        obj = json.loads(json.dumps(world.pod("web")))
        for each in obj["status"]["conditions"]:
            if each["type"] == "Ready":
                each["status"] = "False"
        world.api.put("/api/v1/namespaces/default/pods/web", obj)
        assert not world.ready("web")
        await world.running("web")


async def test_a_status_that_is_as_it_was_is_not_sent_again(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        path = "/api/v1/namespaces/default/pods/web"
        world.create("web", NGINX)
        await world.running("web")
        sent = world.api.patches.count(f"{path}/status")
        for number in range(3):
            obj = json.loads(json.dumps(world.pod("web")))
            obj["metadata"]["labels"] = {"number": str(number)}
            world.api.put(path, obj)
        # Whoever comes later is served later.
        world.create("other", NGINX)
        await world.running("other")
        assert world.api.patches.count(f"{path}/status") == sent


async def test_the_last_word_on_a_pod_is_not_said_of_the_next_of_its_name(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        path = "/api/v1/namespaces/default/pods/web"
        world.create("web", NGINX | {"image": "busybox", "args": ["sleep", "3600"]})
        await world.running("web")
        # The kubelet learns of both at once, while the first one's program is still to be killed.
        world.delete("web", 0)
        world.api.remove(path)
        world.create("web", NGINX)
        world.pod("web")["metadata"]["uid"] = "uid-2"
        world.api.put(path, world.pod("web"))
        await world.running("web")
        assert world.container("web")["restartCount"] == 0
        assert world.container("web")["image"] == "nginx:1.7.9"


async def test_a_pod_no_kubelet_can_read_does_not_harm_the_others(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create("odd", {"image": "nginx"})
        world.create("worse", NGINX, volumes=[{"configMap": {}}])
        world.create("web", NGINX)
        await world.running("web")
        await world.api.until(lambda: "FailedSync" in world.reasons("odd"))
        await world.api.until(lambda: "FailedSync" in world.reasons("worse"))


async def test_a_program_that_ignores_the_signal_is_killed_after_the_grace(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create("sleeper", {"name": "c", "image": "busybox", "args": ["sleep", "3600"]})
        await world.running("sleeper")
        world.delete("sleeper", 1)
        began = asyncio.get_running_loop().time()
        await world.api.until(lambda: not world.pod("sleeper"))
        assert asyncio.get_running_loop().time() - began >= 0.9


async def test_an_unknown_image_backs_off(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create("bad", {"name": "c", "image": "nosuch:1"})
        await world.api.until(
            lambda: (
                world.container("bad").get("state", {}).get("waiting", {}).get("reason")
                == "ImagePullBackOff"
            )
        )
        assert world.status("bad")["phase"] == "Pending"
        await world.api.until(lambda: "BackOff" in world.reasons("bad"))


async def test_a_crashing_container_loops_and_tells(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        command = ["sh", "-c", "echo run; exit 3"]
        world.create("crash", {"name": "c", "image": "busybox", "command": command})

        def waits_for() -> str:
            waiting = world.container("crash").get("state", {}).get("waiting") or {}
            return str(waiting.get("reason"))

        await world.api.until(lambda: waits_for() == "CrashLoopBackOff")
        container = world.container("crash")
        assert container["restartCount"] == 1
        assert container["lastState"]["terminated"]["exitCode"] == 3
        assert world.status("crash")["phase"] == "Running"


async def test_logs_of_the_last_two_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "BACKOFF_START_S", 0.02)
    monkeypatch.setattr(record, "BACKOFF_MAX_S", 0.02)
    command = ["sh", "-c", "echo run; exit 3"]
    async with node(tmp_path) as world:
        world.create("crash", {"name": "c", "image": "busybox", "command": command})
        await world.api.until(lambda: world.container("crash").get("restartCount", 0) >= 4)
        folder = tmp_path / "var/log/pods/default_crash_uid-crash/c"
        numbers = sorted(int(path.stem) for path in folder.glob("*.log"))
        assert 1 <= len(numbers) <= 2
        assert numbers[0] >= 3


async def test_a_missing_program_is_a_start_error(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create(
            "typo", {"name": "c", "image": "busybox", "command": ["nosuch"]}, restartPolicy="Never"
        )
        await world.api.until(lambda: world.status("typo").get("phase") == "Failed")
        ended = world.container("typo")["state"]["terminated"]
        assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
        assert 'exec: "nosuch": executable file not found in $PATH' in ended["message"]


async def test_init_containers_share_a_volume_with_the_others(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        mount = [{"name": "v", "mountPath": "/work"}]
        page = [{"name": "v", "mountPath": "/usr/share/nginx/html"}]
        world.create(
            "init",
            NGINX | {"volumeMounts": page},
            initContainers=[
                {
                    "name": "prepare",
                    "image": "busybox",
                    "command": ["sh", "-c", "echo $(hostname) > /work/index.html"],
                    "volumeMounts": mount,
                }
            ],
            volumes=[{"name": "v", "emptyDir": {}}],
        )
        ip = await world.running("init")
        async with Exchange(world.network, ip, 80) as exchange:
            await exchange.connect()
            await exchange.send("GET", "/", [("Host", ip)])
            head = await exchange.head()
            body = b"".join([part async for part in exchange.body("GET", head)])
        assert body == b"init\n"


async def test_probes_decide_readiness_and_liveness(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        probe = {"httpGet": {"path": "/ok", "port": 80}, "periodSeconds": 0.05}
        world.create("probed", NGINX | {"readinessProbe": probe})
        await world.api.until(lambda: "Unhealthy" in world.reasons("probed"))
        assert not world.ready("probed")
        worker = world.kubelet.find("default", "probed")
        assert worker is not None
        worker.containers["web"].files.write("/usr/share/nginx/html/ok", b"")
        await world.running("probed")
        (event,) = [e for e in world.api.events if e["reason"] == "Unhealthy"][:1]
        assert event["message"] == "Readiness probe failed: HTTP probe failed with statuscode: 404"

        dead = {"tcpSocket": {"port": 81}, "periodSeconds": 0.05, "failureThreshold": 2}
        world.create("dying", NGINX | {"livenessProbe": dead}, terminationGracePeriodSeconds=1)
        await world.api.until(lambda: world.container("dying").get("restartCount", 0) >= 1)
        assert "Killing" in world.reasons("dying")


async def test_a_failing_program_that_ignores_the_signal_is_killed_after_the_grace(
    tmp_path: Path,
) -> None:
    dead = {"tcpSocket": {"port": 81}, "periodSeconds": 0.05, "failureThreshold": 2}
    sleeper = {"name": "c", "image": "busybox", "args": ["sleep", "3600"], "livenessProbe": dead}
    async with node(tmp_path) as world:
        world.create("deaf", sleeper, terminationGracePeriodSeconds=1)
        await world.api.until(lambda: world.container("deaf").get("restartCount", 0) >= 1)
        assert world.container("deaf")["lastState"]["terminated"]["exitCode"] == 137


async def test_logs_are_read_cut_and_followed(tmp_path: Path) -> None:
    async with (
        node(tmp_path) as world,
        aiohttp.ClientSession(headers={"Authorization": "Bearer secret"}) as session,
    ):
        script = "for i in 1 2 3; do echo line $i; done; echo error >&2; sleep 0.3; echo last"
        world.create("log", {"name": "c", "image": "busybox", "command": ["sh", "-c", script]})
        await world.running("log")
        url = world.url("/containerLogs/default/log/c")
        async with session.get(url, params={"tailLines": "2"}) as answer:
            assert (answer.status, await answer.text()) == (200, "line 3\nerror\n")
        async with session.get(url, params={"limitBytes": "8"}) as answer:
            assert await answer.text() == "line 1\nl"
        async with session.get(url, params={"timestamps": "true", "tailLines": "1"}) as answer:
            assert (await answer.text()).endswith("Z error\n")
        async with session.get(url, params={"follow": "true", "tailLines": "0"}) as answer:
            assert await answer.text() == "last\n"
        async with session.get(world.url("/containerLogs/default/nope/c")) as answer:
            assert answer.status == 404
        async with aiohttp.ClientSession() as stranger, stranger.get(url) as answer:
            assert answer.status == 401


async def execute(
    world: World, pod: str, *command: str, stdin: bytes | None = None, tty: bool = False
) -> tuple[bytes, bytes, dict[str, Any]]:
    query = [("command", word) for word in command]
    query += [("stdout", "true"), ("stderr", "true")]
    if stdin is not None:
        query.append(("stdin", "true"))
    if tty:
        query.append(("tty", "true"))
    streams: dict[int, bytes] = {1: b"", 2: b"", 3: b""}
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer secret"}) as session:
        path = f"/exec/default/{pod}/web"
        async with session.ws_connect(
            world.url(path), params=query, protocols=["v5.channel.k8s.io"]
        ) as socket:
            assert socket.protocol == "v5.channel.k8s.io"
            if stdin is not None:
                await socket.send_bytes(b"\x00" + stdin)
                await socket.send_bytes(b"\xff\x00")
            async for message in socket:
                streams[message.data[0]] += message.data[1:]
    return streams[1], streams[2], json.loads(streams[3])


async def test_exec_speaks_the_channels(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create("web", NGINX)
        await world.running("web")
        out, err, status = await execute(world, "web", "sh", "-c", "hostname; echo bad >&2; exit 7")
        assert (out, err) == (b"web\n", b"bad\n")
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
        out, _, status = await execute(world, "web", "cat", stdin=b"through\n")
        assert (out, status["status"]) == (b"through\n", "Success")
        _, _, status = await execute(world, "web", "nosuch")
        assert 'exec: "nosuch": executable file not found in $PATH' in status["message"]
        out, _, _ = await execute(world, "web", "curl", "-s", "http://127.0.0.1/")
        assert len(out) == 612


async def test_a_command_that_breaks_ends_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(ctx: ShellContext, argv: Sequence[str]) -> int:
        raise RuntimeError("unforeseen")

    monkeypatch.setitem(COMMANDS, "breaks", breaks)
    probe = {"exec": {"command": ["breaks"]}, "periodSeconds": 0.05, "failureThreshold": 1000}
    async with node(tmp_path) as world:
        world.create("web", NGINX | {"livenessProbe": probe})
        await world.running("web")
        await world.api.until(lambda: "Unhealthy" in world.reasons("web"))
        _, err, status = await execute(world, "web", "breaks")
        assert b"RuntimeError: unforeseen" in err
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "1"}]
        assert "FailedSync" not in world.reasons("web")
        assert world.container("web")["restartCount"] == 0


async def test_a_terminal_has_prompt_echo_and_interrupt(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create("web", NGINX)
        await world.running("web")
        query = [("command", "sh"), ("stdin", "true"), ("stdout", "true"), ("tty", "true")]
        headers = {"Authorization": "Bearer secret"}
        seen = b""
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(world.url("/exec/default/web/web"), params=query) as socket,
        ):

            async def until(wanted: bytes) -> None:
                nonlocal seen
                while wanted not in seen:
                    seen += (await socket.receive_bytes(timeout=10))[1:]

            await until(b"root@web:/# ")
            await socket.send_bytes(b"\x00echo hx\x7fi\r")
            await until(b"\r\nhi\r\n")
            await socket.send_bytes(b"\x00sleep 60\r")
            await until(b"sleep 60\r\n")
            await socket.send_bytes(b"\x00\x03")
            await until(b"^C\r\nroot@web:/# ")
            await socket.send_bytes(b"\x00exit 4\r")
            await until(b'"message":"4"')


async def test_a_finished_pod_keeps_its_address_and_log(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        script = ["sh", "-c", "echo done"]
        once = {"name": "c", "image": "busybox", "command": script}
        world.create("once", once, restartPolicy="Never")
        await world.api.until(lambda: world.status("once").get("phase") == "Succeeded")

        def conditions() -> dict[str, str]:
            found = world.status("once")["conditions"]
            return {each["type"]: each["status"] for each in found}

        await world.api.until(lambda: conditions()["PodReadyToStartContainers"] == "False")
        assert world.status("once")["podIP"] == "10.2.59.2"
        assert world.container("once")["state"]["terminated"]["reason"] == "Completed"
        headers = {"Authorization": "Bearer secret"}
        url = world.url("/containerLogs/default/once/c")
        async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as answer:
            assert await answer.text() == "done\n"


async def test_environment_and_service_account_reach_the_container(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.api.put(
            "/api/v1/namespaces/default/services/redis-master",
            {
                "metadata": {"name": "redis-master", "namespace": "default", "uid": "s1"},
                "spec": {"clusterIP": "10.3.0.103", "ports": [{"port": 6379}]},
            },
        )
        world.api.put(
            "/api/v1/namespaces/default/secrets/s",
            {
                "metadata": {"name": "s", "namespace": "default", "uid": "s2"},
                "data": {"k": base64.b64encode(b"hidden").decode()},
            },
        )
        await world.api.until(lambda: len(world.kubelet._services.lister) == 1)
        token = {"sources": [{"serviceAccountToken": {"path": "token"}}]}
        secret = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
        mounts = [{"name": "t", "mountPath": "/var/run/secrets", "readOnly": True}]
        world.create(
            "web",
            NGINX | {"env": [secret], "volumeMounts": mounts},
            volumes=[{"name": "t", "projected": token}],
        )
        ip = await world.running("web")
        script = "echo $REDIS_MASTER_SERVICE_HOST $S; cat /var/run/secrets/token /etc/hosts"
        out, _, _ = await execute(world, "web", "sh", "-c", script)
        assert out.startswith(b"10.3.0.103 hidden\nthe-token# Kubernetes-managed hosts file.\n")
        assert f"{ip}\tweb\n".encode() in out


async def test_a_restarted_kubelet_starts_its_pods_again(tmp_path: Path) -> None:
    api = FakeApi()
    async with node(tmp_path, api=api) as world:
        world.create("web", NGINX)
        await world.fetch(await world.running("web"))
        first = world.container("web")["containerID"]
    assert (tmp_path / "var/lib/cni/networks/cbr0/10.2.59.2").exists()
    gone = tmp_path / "var/log/pods/default_gone_uid-of-a-pod-deleted-meanwhile"
    (gone / "c").mkdir(parents=True)
    (gone / "c" / "0.log").touch()
    async with node(tmp_path, api=api) as world:
        await api.until(lambda: world.container("web")["containerID"] != first)
        await api.until(lambda: world.status("web").get("podIP"))
        container = world.container("web")
        assert container["restartCount"] == 1
        assert container["lastState"]["terminated"]["reason"] == "Unknown"
        assert not (tmp_path / "var/lib/cni/networks/cbr0/10.2.59.2").exists()
        assert await world.fetch(world.status("web")["podIP"]) == 200
        url, headers = (
            world.url("/containerLogs/default/web/web"),
            {"Authorization": "Bearer secret"},
        )
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(url, params={"previous": "true", "follow": "true"}) as answer,
        ):
            assert (await answer.text()).count("GET / ") == 1
        assert not gone.exists()


async def test_a_body_of_any_size_goes_through_the_proxy(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer secret"}
    async with node(tmp_path) as world, aiohttp.ClientSession(headers=headers) as session:
        world.create("web", NGINX)
        url = world.url(f"/proxy/http/{await world.running('web')}/80/")
        async with session.post(url, data=io.BytesIO(bytes(2 * 1024 * 1024))) as answer:
            assert (answer.status, "405 Not Allowed" in await answer.text()) == (405, True)


async def test_sixty_pods_come_and_go_without_a_trace(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        for number in range(60):
            world.create(f"p{number}", {"name": "web", "image": "registry.k8s.io/pause:3.9"})
        await world.api.until(lambda: all(world.ready(f"p{n}") for n in range(60)))
        addresses = {world.status(f"p{number}")["podIP"] for number in range(60)}
        assert len(addresses) == 60
        for number in range(60):
            world.delete(f"p{number}", 30)
        await world.api.until(lambda: not any(world.pod(f"p{n}") for n in range(60)))
        assert world.kernel.netns_names() == ("root",)
        names = [link.name for link in world.kernel.root.links()]
        assert not [name for name in names if name.startswith("veth")]
