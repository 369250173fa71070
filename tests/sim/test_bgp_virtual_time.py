"""The whole daemon, shell and all, on simulated machines: crashes, partitions, a day of peace."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from agents.bird.daemon import BirdDaemon
from agents.bird.net import Afi, Net
from agents.bird.speaker import Speaker
from emulator.addr import format_ip, parse_ip
from emulator.sim.world import World, simulate
from tests.bgp_speakers import bgp, calico_bgp, speaker_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from agents.bird.config import BgpConfig
    from emulator.sim.host import SimHost


class Node:
    """A machine with a speaker."""

    def __init__(
        self, world: World, number: int, make: Callable[..., BgpConfig], count: int
    ) -> None:
        self.ip = f"10.0.0.{number}"
        self.host: SimHost = world.host(f"kube-{number}", self.ip)
        self._world = world
        self._lives = 0
        peers = [
            make(f"Mesh_{other}", f"10.0.0.{other}")
            for other in range(1, count + 1)
            if other != number
        ]
        self._config = speaker_config(self.ip, peers, [f"192.168.{number}.0/26"], listen_port=1790)
        self.start()

    def start(self) -> None:
        self._lives += 1
        loop = self._world.loop
        env = self._world.env(f"bird-{self.ip}", self._lives)
        self.speaker = Speaker(
            self._config, random.Random(f"{self.ip}/{self._lives}"), now=loop.time()
        )
        self.daemon = BirdDaemon(
            self.speaker,
            env.log,
            listen=(self.ip, 1790),
            resolve=lambda ip: (format_ip(ip), 1790),
            name_of=parse_ip,
        )
        self.task = self.host.spawn(self.daemon.run(), name="bird")

    @property
    def nets(self) -> list[str]:
        table = self.speaker.tables[Afi.IPV4]
        return sorted(str(Net.from_key(Afi.IPV4, key)) for key in table.routes)


BLOCKS = [f"192.168.{i}.0/26" for i in (1, 2, 3)]


def test_a_crashed_node_is_remembered_and_a_stopped_one_is_not() -> None:
    async def main(world: World) -> None:
        nodes = [Node(world, number, calico_bgp, 3) for number in (1, 2, 3)]
        await world.until(lambda: all(n.nets == BLOCKS for n in nodes), within_s=10)
        await nodes[2].host.crash()
        nodes[2].start()
        await world.until(lambda: nodes[2].nets == BLOCKS, within_s=10)
        assert nodes[0].nets == BLOCKS
        await nodes[2].host.stop()
        await world.until(lambda: nodes[0].nets == BLOCKS[:2], within_s=2)
        nodes[2].start()
        await world.until(lambda: all(n.nets == BLOCKS for n in nodes), within_s=60)

    simulate(main)


def test_a_power_cut_is_noticed_by_the_hold_timer() -> None:
    async def main(world: World) -> None:
        nodes = [Node(world, number, bgp, 3) for number in (1, 2, 3)]
        await world.until(lambda: all(n.nets == BLOCKS for n in nodes), within_s=10)
        await nodes[2].host.crash()
        await world.until(lambda: nodes[0].nets == BLOCKS[:2], within_s=245)
        assert nodes[0].speaker.peers["Mesh_3"].last_error[1] in (
            "Hold timer expired",
            "Connection timed out",
        )

    simulate(main)


def test_a_bug_of_the_core_ends_the_daemon_with_its_error() -> None:
    async def main(world: World) -> None:
        nodes = [Node(world, number, calico_bgp, 2) for number in (1, 2)]
        await world.until(lambda: all(len(n.nets) == 2 for n in nodes), within_s=10)
        daemon = nodes[0].daemon

        def broken() -> None:
            raise AssertionError("a bug")

        daemon.do(broken)
        with pytest.raises(AssertionError, match="a bug"):
            await nodes[0].task

    simulate(main)


def test_a_day_of_keepalives_changes_nothing() -> None:
    async def main(world: World) -> int:
        nodes = [Node(world, number, calico_bgp, 2) for number in (1, 2)]
        await world.until(lambda: all(len(n.nets) == 2 for n in nodes), within_s=10)
        session = nodes[0].speaker.peers["Mesh_2"].session
        await world.until(lambda: world.loop.time() > 86400, within_s=90000)
        assert nodes[0].speaker.peers["Mesh_2"].session is session
        return len(nodes[0].nets)

    assert simulate(main) == 2
