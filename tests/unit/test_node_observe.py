"""Captures over the control socket, with a reader that does not keep up."""

from __future__ import annotations

import asyncio
import logging
import random

from agents.node.observe import MAX_CAPTURE_BYTES, Observer
from emulator.addr import parse_ip
from emulator.netstack.kernel import Kernel
from emulator.runtime.clock import real_clock
from emulator.runtime.control import MAX_FRAME_BYTES, Call
from emulator.runtime.role import RoleEnv


async def test_a_slow_reader_loses_frames_and_never_gets_more_than_a_control_frame_holds() -> None:
    kernel = Kernel("w1", clock=asyncio.get_running_loop().time, rng=random.Random(1))
    env = RoleEnv(real_clock(), random.Random(1), logging.getLogger("test"), lambda _: None)
    frames = Observer(kernel, env).capture(Call("capture", {"device": "lo"}))
    assert (await anext(frames))["listening"] == "lo of w1"  # type: ignore[index]
    ping, sent = kernel.root.sockets.ping_open(), 0
    while sent * 60000 < MAX_FRAME_BYTES // 2:
        ping.send(parse_ip("127.0.0.1"), sent, bytes(60000))
        sent += 1
    item = await anext(frames)
    await frames.aclose()
    assert isinstance(item, dict)
    assert MAX_CAPTURE_BYTES // 2 < len(item["data"]) < MAX_FRAME_BYTES
    assert item["packets"] + item["dropped"] == 4 * sent  # out and in, there and back
