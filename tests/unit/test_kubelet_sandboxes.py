"""A pod's network comes, fails, is tried again and goes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from agents.cni.errors import GENERIC, CniError
from agents.cni.plugin import NodeCni
from agents.kubelet import daemon, record, worker

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


from tests.kubelet_world import NGINX, node


async def test_a_deleted_pod_stops_gives_its_address_back_and_is_removed(tmp_path: Path) -> None:
    async with node(tmp_path) as world:
        world.create("web", NGINX)
        await world.running("web")
        world.delete("web", 30)
        await world.api.until(lambda: not world.pod("web"))
        assert world.kernel.netns_names() == ("root",)
        assert not (tmp_path / "var/lib/cni/networks/cbr0/10.2.59.2").exists()
        await world.api.until(lambda: "Killing" in world.reasons("web"))


async def test_a_pod_stays_until_the_plugin_has_given_its_address_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, refused = NodeCni.delete, []

    def refuse_once(cni: NodeCni, container_id: str, netns: str) -> None:
        if not refused:
            refused.append(container_id)
            raise CniError(GENERIC, "etcd is away")
        delete(cni, container_id, netns)

    monkeypatch.setattr(NodeCni, "delete", refuse_once)
    monkeypatch.setattr(record, "SYNC_BACKOFF_S", 0.05)
    async with node(tmp_path) as world:
        world.create("web", NGINX)
        await world.running("web")
        world.delete("web", 30)
        await world.api.until(lambda: "FailedKillPod" in world.reasons("web"))
        await world.api.until(lambda: not world.pod("web"))
        assert not (tmp_path / "var/lib/cni/networks/cbr0/10.2.59.2").exists()
        (event,) = [each for each in world.api.events if each["reason"] == "FailedKillPod"]
        assert event["message"].endswith(
            f'sandbox \\"{refused[0]}\\": plugin type=\\"flannel\\" failed (delete): etcd is away"'
        )


def refuse_adds(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """Let the plugin refuse so often; the sandboxes it was asked for."""
    add, asked = NodeCni.add, []

    def refuse(cni: NodeCni, container_id: str, *args: Any, **more: Any) -> Any:
        asked.append(container_id)
        if len(asked) <= times:
            raise CniError(GENERIC, "etcd is away")
        return add(cni, container_id, *args, **more)

    monkeypatch.setattr(NodeCni, "add", refuse)
    return asked


async def test_a_sandbox_that_fails_is_tried_again_and_its_events_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refuse_adds(monkeypatch, 14)
    monkeypatch.setattr(record, "SYNC_BACKOFF_S", 0.01)
    async with node(tmp_path) as world:
        world.create("web", NGINX)
        await world.running("web")
        assert len(asked) == len({*asked}) == 15

        def told() -> list[dict[str, Any]]:
            return [e for e in world.api.events if e["reason"] == "FailedCreatePodSandBox"]

        await world.api.until(lambda: sum(event["count"] for event in told()) == 14)
        *first, combined = told()
        assert [event["count"] for event in first] == [1] * 9
        assert [asked[n] in event["message"] for n, event in enumerate(first)] == [True] * 9
        assert combined["message"].startswith("(combined from similar events): Failed to create")
        assert asked[13] in combined["message"]


async def test_a_failed_sandbox_waits_its_time_unless_somebody_changes_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refuse_adds(monkeypatch, 2)
    async with node(tmp_path) as world:
        world.create("web", NGINX)
        world.create("other", NGINX | {"image": "nosuch:1"})
        await world.api.until(lambda: len(asked) == 2)
        await world.api.until(lambda: len(world.status("web").get("conditions", ())) > 0)
        # What the kubelet wrote itself, and what others say of it, changes nothing.
        for number in range(3):
            obj = json.loads(json.dumps(world.pod("web")))
            obj["status"]["message"] = f"told {number}"
            world.api.put("/api/v1/namespaces/default/pods/web", obj)
        world.create("barrier", NGINX)
        await world.running("barrier")
        assert len(asked) == 3
        obj = json.loads(json.dumps(world.pod("web")))
        obj["metadata"]["annotations"] = {"cni.projectcalico.org/ipv4pools": '["other"]'}
        world.api.put("/api/v1/namespaces/default/pods/web", obj)
        await world.running("web")
        assert len(asked) == 4


async def test_what_failed_sandboxes_left_is_collected_and_what_pods_have_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, create = NodeCni.collect, worker.create_sandbox
    lives: list[list[str]] = []
    made: list[str] = []

    def look(cni: NodeCni, live: list[str]) -> tuple[str, ...]:
        lives.append(live)
        return collect(cni, live)

    async def wait_for_a_look(*args: Any) -> Any:
        seen = len(lives)
        while len(lives) < seen + 2:
            await asyncio.sleep(0.005)
        assert lives[-1] == [args[-1]], "a sandbox that is being made is alive"
        made.append(args[-1])
        return await create(*args)

    monkeypatch.setattr(daemon, "COLLECT_S", 0.01)
    monkeypatch.setattr(NodeCni, "collect", look)
    monkeypatch.setattr(worker, "create_sandbox", wait_for_a_look)
    monkeypatch.setattr(record, "SYNC_BACKOFF_S", 0.01)
    asked = refuse_adds(monkeypatch, 1)
    async with node(tmp_path) as world:
        assert lives == [[]], "at its start a kubelet has no sandboxes"
        world.create("web", NGINX)
        await world.running("web")
        assert made == asked
        await world.api.until(lambda: lives[-1] == [made[-1]])
        leftover = tmp_path / "var/lib/cni/flannel" / made[0]
        assert not leftover.exists()
        leftover.write_text((leftover.parent / made[1]).read_text())
        await world.api.until(lambda: not leftover.exists())
        assert (leftover.parent / made[1]).exists()
