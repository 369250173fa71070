"""The supervisor and the zygote with roles that do nothing: start, crash, restart, take down."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING

import pytest

from emulator.cluster import supervisor as supervisor_module
from emulator.cluster.launch import write_credentials
from emulator.cluster.plan import make_plan
from emulator.cluster.process import run_role
from emulator.cluster.spec import load_spec
from emulator.cluster.supervisor import Supervisor
from emulator.cluster.zygote import start_zygote
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from emulator.cluster.plan import ClusterPlan
    from emulator.cluster.zygote import Child
    from emulator.runtime.role import RoleEnv


async def idle(env: RoleEnv) -> None:
    env.ready("idling")
    await asyncio.Event().wait()


async def refuse(env: RoleEnv) -> None:
    raise UsageError("127.0.0.1:6443: address already in use")


def idle_child(child: Child) -> int:
    return run_role(
        idle,
        name=child.role,
        on_ready=child.ready,
        on_failed=child.failed,
        lifeline=child.lifeline,
    )


def child_with_a_taken_port(child: Child) -> int:
    return run_role(
        refuse if child.role == "controlplane" else idle,
        name=child.role,
        on_ready=child.ready,
        on_failed=child.failed,
        lifeline=child.lifeline,
    )


def plan_in(directory: Path) -> ClusterPlan:
    for part in ("run", "logs", "nodes", "pki"):
        (directory / part).mkdir()
    return make_plan(load_spec("nodes: 2"), directory, 77)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for a condition the supervisor's own loop brings about."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0)


def supervise(
    tmp_path: Path,
    run_child: Callable[[Child], int],
    story: Callable[[Supervisor], object] | None,
) -> list[str]:
    plan = plan_in(tmp_path)
    channel, zygote = start_zygote(run_child)
    progress: list[str] = []

    async def main() -> None:
        up = asyncio.Event()
        supervisor = Supervisor(
            plan, channel, logging.getLogger("test"), lambda role, *_: progress.append(role)
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.run(up.set))
            if story is not None:
                await up.wait()
                outcome = story(supervisor)
                assert asyncio.iscoroutine(outcome)
                await outcome
                supervisor.stop()

    try:
        asyncio.run(main())
    finally:
        assert os.waitpid(zygote, 0) == (zygote, 0)
    return progress


def test_all_roles_start_etcd_first_and_end_when_stopped(tmp_path: Path) -> None:
    pids: list[int] = []

    async def story(supervisor: Supervisor) -> None:
        status = supervisor.status()
        assert status["up"]
        pids.extend(node["pid"] for node in status["nodes"])
        pids.append(status["etcd"]["pid"])
        assert all(node["ready"] for node in status["nodes"])
        assert all(map(alive, pids))

    progress = supervise(tmp_path, idle_child, story)
    assert progress[0] == "etcd"
    assert sorted(progress[1:]) == ["controlplane", "node-0", "node-1"]
    assert not any(map(alive, pids))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_role_comes_back_and_is_counted(tmp_path: Path) -> None:
    async def story(supervisor: Supervisor) -> None:
        node = supervisor.roles["node-1"]
        first = node.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: node.ready and node.pid not in (0, first))
        assert (node.restarts, node.last_exit) == (1, "killed by SIGKILL")
        assert supervisor.roles["node-0"].restarts == 0

    supervise(tmp_path, idle_child, story)


def test_each_crash_is_waited_after_for_longer_unless_the_role_was_stable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def story(supervisor: Supervisor) -> None:
        node = supervisor.roles["node-1"]
        for number, stable_after_s in enumerate((10.0, 10.0, 0.0), 1):
            monkeypatch.setattr(supervisor_module, "STABLE_AFTER_S", stable_after_s)
            os.kill(node.pid, signal.SIGKILL)
            await until(lambda number=number: node.restarts == number)  # type: ignore[misc]
            waits.append(node.backoff_s / 2)
            await until(lambda: node.ready)

    supervise(tmp_path, idle_child, story)
    assert waits == [0.1, 0.2, 0.1]


def test_bad_input_of_a_role_that_ran_is_a_crash_like_any_other(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"

    async def refuse_later(env: RoleEnv) -> None:
        env.ready("for now")
        while not wrong.exists():
            await asyncio.sleep(0.01)
        wrong.unlink()
        raise UsageError("/nowhere: no such directory")

    def child(child: Child) -> int:
        return run_role(
            refuse_later if child.role == "node-0" else idle,
            name=child.role,
            on_ready=child.ready,
            on_failed=child.failed,
            lifeline=child.lifeline,
        )

    async def story(supervisor: Supervisor) -> None:
        node = supervisor.roles["node-0"]
        wrong.touch()
        await until(lambda: node.restarts == 1 and node.ready)
        assert node.last_exit == "exit status 2: /nowhere: no such directory"

    supervise(tmp_path, child, story)


def test_nodes_end_before_the_control_plane_and_etcd_last(tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    async def tell(env: RoleEnv) -> None:
        name = env.log.name.rpartition(".")[2]
        env.ready("idling")
        try:
            await asyncio.Event().wait()
        finally:
            with ended.open("a") as file:
                file.write(f"{name}\n")

    def child(child: Child) -> int:
        return run_role(
            tell,
            name=child.role,
            on_ready=child.ready,
            on_failed=child.failed,
            lifeline=child.lifeline,
        )

    async def story(supervisor: Supervisor) -> None:
        assert not ended.exists()

    supervise(tmp_path, child, story)
    *nodes, last_but_one, last = ended.read_text().split()
    assert sorted(nodes) == ["node-0", "node-1"]
    assert (last_but_one, last) == ("controlplane", "etcd")


def test_a_role_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_GRACE_S", 0.2)
    made: list[Supervisor] = []

    def deaf(child: Child) -> int:
        if child.role != "node-0":
            return idle_child(child)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child.ready("deaf")
        while True:
            signal.pause()

    async def story(supervisor: Supervisor) -> None:
        made.append(supervisor)

    supervise(tmp_path, deaf, story)
    assert {name: state.pid for name, state in made[0].roles.items()} == dict.fromkeys(
        made[0].roles, 0
    )


def test_bad_input_of_a_role_fails_the_start_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        supervise(tmp_path, child_with_a_taken_port, None)
    (error,) = caught.value.exceptions
    assert isinstance(error, UsageError)
    assert str(error) == "controlplane: 127.0.0.1:6443: address already in use"


def test_credentials_are_private_and_made_once(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    write_credentials(plan)
    first = {path.name: path.read_bytes() for path in (tmp_path / "pki").iterdir()}
    for name in ("ca.key", "apiserver.key", "admin.key", "kubelet.key", "tokens.csv"):
        assert (tmp_path / "pki" / name).stat().st_mode & 0o777 == 0o600
    assert plan.kubeconfig.stat().st_mode & 0o777 == 0o600
    write_credentials(plan)
    assert {path.name: path.read_bytes() for path in (tmp_path / "pki").iterdir()} == first


def test_a_role_killed_by_a_signal_without_a_name_comes_back_too(tmp_path: Path) -> None:
    async def story(supervisor: Supervisor) -> None:
        state = supervisor.roles["node-0"]
        os.kill(state.pid, signal.SIGRTMIN + 6)
        await until(lambda: state.restarts == 1 and state.ready)
        assert state.last_exit == f"killed by signal {signal.SIGRTMIN + 6}"

    supervise(tmp_path, idle_child, story)


def test_a_fork_that_fails_is_one_roles_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, forks = os.fork, []

    def fork() -> int:
        forks.append(1)
        if len(forks) == 3:  # the zygote, etcd, then what this test is about
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real()

    monkeypatch.setattr(os, "fork", fork)

    async def story(supervisor: Supervisor) -> None:
        counted = {name: state.restarts for name, state in supervisor.roles.items()}
        assert counted == {"etcd": 0, "controlplane": 1, "node-0": 0, "node-1": 0}
        last = supervisor.roles["controlplane"].last_exit
        assert last == "exit status 1: cannot fork: Resource temporarily unavailable"

    supervise(tmp_path, idle_child, story)
