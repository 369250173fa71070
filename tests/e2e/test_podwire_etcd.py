"""``podwire etcd`` as a process: flags, ready lines, exit codes, what survives kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.etcd_servers import free_port, kill

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.e2e
TIMEOUT_S = 30.0
READY = "ready to serve client requests"


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    return {**kept, **more}


@asynccontextmanager
async def podwire_etcd(
    folder: Path, *flags: str, **variables: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    """Run the verb; yield the process and the lines of its log until it was ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emulator.cli.main", "etcd", *flags),
        cwd=folder,
        env=_environment(**variables),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not lines or "ready: etcd" not in lines[-1]:
                line = (await process.stderr.readline()).decode()
                assert line, f"it ended: {lines}"
                lines.append(line.rstrip("\n"))
        yield process, lines
    finally:
        await kill(process)


async def test_it_says_that_it_is_ready_as_etcd_does(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ("--listen-client-urls", url, "--heartbeat-interval=200", "--enable-v2")
    async with podwire_etcd(tmp_path, *flags, ETCD_NAME="n7") as (process, lines):
        text = "\n".join(lines)
        assert READY in text
        insecure = f"serving insecure client requests on 127.0.0.1:{port}, this is strongly"
        assert insecure in text
        assert "--heartbeat-interval has no effect" in text
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{url}/v2/members") as answer,
        ):
            (member,) = (await answer.json())["members"]
        assert (member["name"], member["clientURLs"]) == ("n7", [url])
        assert (tmp_path / "n7.etcd").is_dir()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT_S):
            assert await process.wait() == 0


async def test_a_wrong_start_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    async with podwire_etcd(
        tmp_path, "--name=a", f"--listen-client-urls=http://127.0.0.1:{free_port()}"
    ) as (_, lines):
        taken = lines[-1].rpartition("/")[2]
        for flags in (
            ("--name=b", f"--listen-client-urls=http://{taken}"),
            ("--name=b", "--bogus"),
            ("--name=b", "--initial-cluster=b=http://x:1,c=http://y:1"),
            ("--name=b", "--config-file=/nonexistent"),
        ):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "emulator.cli.main", "etcd", *flags),
                cwd=tmp_path,
                env=_environment(),
                stderr=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(TIMEOUT_S):
                _, err = await process.communicate()
            assert process.returncode == 2, flags
            assert err.count(b"\n") == 1, err
        assert not (tmp_path / "b.etcd").exists()


async def test_acknowledged_v2_keys_survive_kill_9(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    # A small snapshot count, so that snapshots are taken and cut off as well.
    flags = ("--listen-client-urls", url, "--enable-v2", "--snapshot-count=20")
    acknowledged: dict[str, str] = {}
    index = 0
    async with aiohttp.ClientSession() as session:
        for life in range(4):
            async with podwire_etcd(tmp_path, *flags) as (process, _):
                for key, value in acknowledged.items():
                    async with session.get(f"{url}/v2/keys/{key}") as answer:
                        assert (await answer.json())["node"]["value"] == value
                        assert int(answer.headers["X-Etcd-Index"]) >= index

                async def write(
                    writer: int, life: int = life, acknowledged: dict[str, str] = acknowledged
                ) -> None:
                    nonlocal index
                    for number in range(10_000):
                        key, value = f"w{writer}/{number % 40}", f"{life}.{number}"
                        async with session.put(
                            f"{url}/v2/keys/{key}", data={"value": value}
                        ) as answer:
                            assert answer.status in (200, 201)
                            acknowledged[key] = value
                            index = max(index, int(answer.headers["X-Etcd-Index"]))

                writers = [asyncio.create_task(write(number)) for number in range(4)]
                wanted = len(acknowledged) + 60 if life == 0 else index + 150
                async with asyncio.timeout(TIMEOUT_S):
                    while (len(acknowledged) if life == 0 else index) < wanted:
                        await asyncio.sleep(0.01)
                # Keys in flight may have been written; only their newest values are unknown.
                process.kill()
                results = await asyncio.gather(*writers, return_exceptions=True)
                assert all(isinstance(r, aiohttp.ClientError) for r in results), results
            # What was being overwritten when it died may hold either value.
            async with (
                podwire_etcd(tmp_path, *flags),
                session.get(f"{url}/v2/keys/?recursive=true") as answer,
            ):
                assert int(answer.headers["X-Etcd-Index"]) > index
                found = dict(_files((await answer.json())["node"]))
                for key, value in acknowledged.items():
                    kept = [int(part) for part in found[key].split(".")]
                    assert kept >= [int(part) for part in value.split(".")]
                acknowledged = found


def _files(node: dict[str, object]) -> list[tuple[str, str]]:
    if "value" in node:
        return [(str(node["key"]).lstrip("/"), str(node["value"]))]
    children = node.get("nodes", [])
    assert isinstance(children, list)
    return [file for child in children for file in _files(child)]
