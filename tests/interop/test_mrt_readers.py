"""Our MRT files through bgpdump and mrtparse: tables by ``mrt dump``, messages as they pass."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING

import pytest

from agents.bird.config import AddPaths
from agents.bird.ctl.reply import Dialect
from agents.bird.daemon import BirdDaemon
from agents.bird.filters import Accept, AddCommunity, Attr, CommunityKind, Filter, PrependAs, Set
from agents.bird.observers import MAX_MRT, MrtLog
from agents.bird.speaker import Speaker
from emulator.addr import parse_ip
from emulator.runtime.clock import real_clock
from tests import bgp_peers
from tests.bgp_daemons import alive
from tests.bgp_peers import until
from tests.bgp_speakers import bgp, channel, speaker_config
from tests.bird_ctl import controlled, session
from tests.mrt_reader import named, read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agents.bird.config import SpeakerConfig

OURS, HUB, PORT = "127.0.96.1", "127.0.96.9", 1790
BGPDUMP = bgp_peers.find("bgpdump", "usr/bin/bgpdump")
TAG = Filter(
    (
        Set(Attr.MED, 5),
        AddCommunity(CommunityKind.STANDARD, (64512, 120)),
        AddCommunity(CommunityKind.LARGE, (1, 2, 3)),
        PrependAs(65009),
        Accept(),
    )
)


def ours(add_paths: AddPaths) -> SpeakerConfig:
    hop = parse_ip("10.10.64.1").to_bytes(4, "big")
    family = channel(add_paths=add_paths, next_hop_address=hop)
    peer = bgp("hub", HUB, source_address=parse_ip(OURS), ipv4=family)
    return speaker_config("10.10.64.1", [peer], ["192.168.1.0/26"], listen_port=PORT)


@contextlib.asynccontextmanager
async def hub(add_paths: AddPaths) -> AsyncIterator[None]:
    hop = parse_ip("10.10.64.9").to_bytes(4, "big")
    family = channel(add_paths=add_paths, next_hop_address=hop, export_filter=TAG)
    peer = bgp("ours", OURS, source_address=parse_ip(HUB), ipv4=family, passive=True)
    nets = ["192.168.2.0/26", "192.168.3.0/26"]
    config = speaker_config("10.10.64.9", [peer], nets, listen_port=PORT)
    now = asyncio.get_running_loop().time()
    speaker = Speaker(config, random.Random(2), now=now)
    daemon = BirdDaemon(speaker, logging.getLogger("hub"), listen=(HUB, PORT))
    async with alive(daemon):
        yield


@pytest.mark.parametrize("add_paths", [AddPaths.OFF, AddPaths.ON])
async def test_a_table_is_read_by_others(add_paths: AddPaths, tmp_path: Path) -> None:
    async with (
        hub(add_paths),
        controlled(
            ours(add_paths), tmp_path, listen=(OURS, PORT), dialect=Dialect.BIRD2
        ) as control,
    ):
        table = control.speaker.tables[next(iter(control.speaker.tables))]
        await until(lambda: len(table.routes) == 3, "the hub's routes")
        async with session(tmp_path / "bird.ctl") as client:
            assert await client.ask('mrt dump table "master4" to "/t.mrt"') == ["0000 "]
            outside = await client.ask('mrt dump table "master4" to "../../t.mrt"')
            assert outside[0].startswith("8002 Unable to open MRT file")
    index, *records = read(tmp_path / "t.mrt")
    assert named(index, "subtype") == "PEER_INDEX_TABLE"
    assert index["view_name"] == "master4"
    assert [peer["peer_ip"] for peer in index["peer_entries"]] == ["0.0.0.0", HUB]
    kind = "RIB_IPV4_UNICAST" + ("_ADDPATH" if add_paths is AddPaths.ON else "")
    assert {named(record, "subtype") for record in records} == {kind}
    by_net = {f"{r['prefix']}/{r['length']}": r["rib_entries"] for r in records}
    assert sorted(by_net) == ["192.168.1.0/26", "192.168.2.0/26", "192.168.3.0/26"]
    (entry,) = by_net["192.168.2.0/26"]
    values = {named(a, "type"): a["value"] for a in entry["path_attributes"]}
    assert entry["peer_index"] == 1
    assert values["NEXT_HOP"] == "10.10.64.9"
    assert values["MULTI_EXIT_DISC"] == 5
    assert values["COMMUNITY"] == ["64512:120"]
    assert values["LARGE_COMMUNITY"] == ["1:2:3"]
    assert values["AS_PATH"][0]["value"] == ["65009"]
    if BGPDUMP is not None and add_paths is AddPaths.OFF:
        lines = BGPDUMP.run("-q", "-m", str(tmp_path / "t.mrt")).splitlines()
        (line,) = [line for line in lines if "192.168.2.0/26" in line]
        fields = line.split("|")
        assert fields[0] == "TABLE_DUMP2"
        assert fields[3:12] == [
            HUB, "64512", "192.168.2.0/26", "65009", "IGP", "10.10.64.9", "100", "5", "64512:120",
        ]  # fmt: skip


@pytest.mark.parametrize("add_paths", [AddPaths.OFF, AddPaths.ON])
async def test_messages_and_states_are_read_by_others(add_paths: AddPaths, tmp_path: Path) -> None:
    path = tmp_path / "log" / "messages.mrt"
    log = MrtLog(path, real_clock(), logging.getLogger("mrt"))
    now = asyncio.get_running_loop().time()
    speaker = Speaker(ours(add_paths), random.Random(3), now=now, tap=log)
    log.attach(speaker)
    daemon = BirdDaemon(speaker, logging.getLogger("bird"), listen=(OURS, PORT), on_event=log.event)
    async with hub(add_paths), alive(daemon):
        table = speaker.tables[next(iter(speaker.tables))]
        await until(lambda: len(table.routes) == 3, "the hub's routes")
    log.close()
    records = read(path)
    assert {named(record, "type") for record in records} == {"BGP4MP_ET"}
    states = [named(record, "new_state") for record in records if "new_state" in record]
    assert "Established" in states
    messages = [record for record in records if "bgp_message" in record]
    kinds = [named(record["bgp_message"], "type") for record in messages]
    assert kinds.count("OPEN") == 2
    assert "UPDATE" in kinds
    assert {record["peer_ip"] for record in messages} == {HUB}
    nets = {nlri["prefix"] for record in messages for nlri in record["bgp_message"].get("nlri", [])}
    assert nets == {"192.168.1.0", "192.168.2.0", "192.168.3.0"}
    if BGPDUMP is not None and add_paths is AddPaths.OFF:
        lines = BGPDUMP.run("-q", "-m", str(path)).splitlines()
        assert any(line.startswith("BGP4MP_ET|") and "|A|" in line for line in lines)


async def test_a_full_file_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "messages.mrt"
    with path.open("wb") as file:
        file.truncate(MAX_MRT)
    log = MrtLog(path, real_clock(), logging.getLogger("mrt"))
    now = asyncio.get_running_loop().time()
    log.attach(Speaker(ours(AddPaths.OFF), random.Random(3), now=now))
    log.message("hub", 1, 4, b"", received=True, now=now)
    log.message("hub", 1, 4, b"", received=True, now=now)
    assert path.stat().st_size == MAX_MRT
    assert caplog.text.count("is full") == 1
