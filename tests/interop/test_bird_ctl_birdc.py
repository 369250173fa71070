"""Debian's own clients on our control socket: one-shot, interactive, restricted; both birds'."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING

import pytest

from agents.bird.ctl.reply import Dialect
from tests import bgp_peers
from tests.bgp_speakers import bgp, speaker_config
from tests.bird_ctl import controlled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bgp_peers import Program

CLIENTS = {
    "birdc 2": bgp_peers.bird2_client(),
    "birdcl 2": bgp_peers.find("bird2", "usr/sbin/birdcl"),
    "birdc 1.6": bgp_peers.find("bird", "usr/sbin/birdc", system=False),
}
CONFIG = speaker_config(
    "10.10.68.222", [bgp("Mesh_10_10_95_205", "10.10.95.205", passive=True)], ["192.168.145.64/26"]
)


async def run(program: Program, *arguments: str, typed: str | None = None) -> tuple[int, str]:
    """Exit code and output; our loop goes on meanwhile."""

    def wait() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program.path, *arguments],
            env=program.env,
            input=typed,
            stdin=subprocess.DEVNULL if typed is None else None,
            capture_output=True,
            text=True,
            timeout=20,
        )

    done = await asyncio.to_thread(wait)
    return done.returncode, done.stdout


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("name", CLIENTS)
async def test_the_client_shows_what_we_say(name: str, dialect: Dialect, tmp_path: Path) -> None:
    program = CLIENTS[name]
    if program is None:
        pytest.skip(bgp_peers.NO_BIRD1 if "1.6" in name else bgp_peers.NO_BIRD2)
    path = str(tmp_path / "bird.ctl")
    # The older client's exit code says nothing.
    failed = 0 if "1.6" in name else 1
    async with controlled(CONFIG, tmp_path, dialect=dialect):
        code, out = await run(program, "-s", path, "sho", "prot")
        assert code == 0
        assert "Mesh_10_10_95_205 BGP" in out
        code, out = await run(program, "-s", path, "-v", "show", "route", "count")
        assert code == 0
        assert out.splitlines()[-1].startswith("0014 ")
        code, out = await run(program, "-s", path, "show", "protocols", "nosuch")
        assert code == failed
        code, out = await run(program, "-s", path, "-r", "disable", "all")
        assert (code, out.splitlines()[-1]) == (failed, "Access denied")
        code, out = await run(program, "-s", path, typed="show status\nshow route\neval 6*7\n")
        assert code == 0
        lines = [line.strip() for line in out.splitlines()]
        assert "Daemon is up and running" in lines
        assert any(line.endswith("42") for line in lines)
        assert any("192.168.145.64/26" in line and "blackhole" in line for line in lines)
