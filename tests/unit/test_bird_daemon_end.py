"""What a daemon that ended leaves alone, on a real loop."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

import pytest

from agents.bird.config import KernelConfig
from agents.bird.daemon import BirdDaemon
from agents.bird.netlink import NamespacePort
from agents.bird.speaker import Speaker
from emulator.netstack.kernel import Kernel
from emulator.runtime.listener import listen_tcp
from tests.bgp_speakers import speaker_config

if TYPE_CHECKING:
    from agents.bird.kernel import Interface


class CountingPort(NamespacePort):
    """A kernel that counts how often it is looked at."""

    looks = 0

    def interfaces(self) -> tuple[Interface, ...]:
        self.looks += 1
        return super().interfaces()


async def test_what_still_waits_when_the_daemon_ends_does_not_wake_it_again() -> None:
    loop = asyncio.get_running_loop()
    port = CountingPort(Kernel("kube-0", clock=loop.time, rng=random.Random(1)).root)
    config = speaker_config("127.44.9.1", kernel=KernelConfig())
    speaker = Speaker(config, random.Random(1), now=loop.time(), kernel=port)
    daemon = BirdDaemon(speaker, logging.getLogger("podwire.bird"), listen=None)
    ready = asyncio.Event()
    looks = 0

    async def live() -> None:
        nonlocal looks
        await daemon.run(ready.set)
        looks = port.looks

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(live(), name="bird")
        await ready.wait()
        daemon.shut_down()
        # An input of the same turn of the loop; what follows from it comes after the end.
        daemon.do(lambda: speaker.kernel_changed(now=loop.time()))
    for _ in range(10):
        await asyncio.sleep(0)
    assert looks
    assert port.looks == looks


async def test_a_core_that_cannot_even_end_leaves_the_port_to_the_next_life() -> None:
    class Broken(Speaker):
        def shut_down(self, *, now: float, text: str = "") -> None:
            raise RuntimeError("a bug")

    config = speaker_config("127.44.9.1")
    speaker = Broken(config, random.Random(1), now=asyncio.get_running_loop().time())
    listener = listen_tcp("127.44.9.1", 0)
    port = listener.getsockname()[1]
    daemon = BirdDaemon(speaker, logging.getLogger("podwire.bird"), listen=listener)
    with pytest.raises(RuntimeError, match="a bug"):
        await daemon.run(lambda: daemon.do(lambda: speaker.shut_down(now=0.0)))
    listen_tcp("127.44.9.1", port).close()
