"""What a node of a large mesh does once instead of once for each of its peers."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agents.bird.answers import MAX_TERMS, Answers
from agents.bird.attributes import Attrs
from agents.bird.channel import Channel
from agents.bird.config import DirectConfig, NextHopRule
from agents.bird.filters import ACCEPT_ALL, Accept, Filter, If, IfnameMatches, Source
from agents.bird.net import Afi, Net
from agents.bird.netlink import NamespacePort
from agents.bird.nexthop import HostEntry, Resolver
from agents.bird.outgoing import Terms
from agents.bird.rib import NextHop, Path, Table
from agents.bird.speaker import Speaker
from tests.bgp_speakers import World, bgp, calico_bgp, channel, speaker_config
from tests.unit.test_bgp_kernel import config, node

if TYPE_CHECKING:
    from agents.bird.config import BgpConfig
    from agents.bird.kernel import KernelRoute

NAMES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
KEY = Net.parse("192.168.1.0/24").key


def mesh(world: World, name: str, *also: BgpConfig) -> None:
    peers = [calico_bgp(other, other) for other in NAMES if other != name]
    world.add(speaker_config(name, [*peers, *also], [f"192.168.{name[-1]}.0/24"]))


@pytest.mark.parametrize("outside", [False, True], ids=["mesh alone", "with a router outside"])
def test_a_late_node_is_told_what_is_its_peers_own_and_what_comes_from_outside(
    outside: bool,
) -> None:
    world = World()
    tor = bgp("tor", "10.0.0.9", peer_as=65001, multihop=4)
    mesh(world, NAMES[0], *([tor] if outside else []))
    mesh(world, NAMES[1])
    if outside:
        up = bgp("up", NAMES[0], peer_as=64512, local_as=65001, multihop=4, ipv4=channel())
        world.add(speaker_config("10.0.0.9", [up], ["172.20.0.0/16"]))
    wanted = 3 if outside else 2
    assert world.run(60, lambda: len(world.table(NAMES[0])) == wanted)
    mesh(world, NAMES[2])
    assert world.run(60, lambda: world.is_up(*NAMES))
    world.run(1)
    own = {f"192.168.{name[-1]}.0/24": [name] for name in NAMES[:2]}
    own["192.168.3.0/24"] = ["static1"]
    outer = {"172.20.0.0/16": [NAMES[0]]} if outside else {}
    assert world.table(NAMES[2]) == own | outer
    stats = world.speakers[NAMES[0]].peers[NAMES[2]].exchange.channels[Afi.IPV4].stats
    # The second node's route is counted as refused, looked at or not.
    assert stats.exp_updates_received - stats.exp_updates_rejected == wanted - 1
    assert stats.exp_updates_rejected == 1


def test_an_answer_is_given_again_until_the_route_goes_another_way() -> None:
    table = Table(Afi.IPV4)
    hop = HostEntry(b"\x0a\0\0\1")
    hop.ways = (NextHop(b"", "eth0"),)
    path = Path(Channel("x", Source.BGP, table, Resolver(table)), Attrs(), 0.0, hop=hop)
    out = Filter((If(IfnameMatches(("eth*",)), (Accept(),)),))
    answers = Answers()
    first = answers.of(out, path, Afi.IPV4, KEY)
    assert first.leaf.accept
    assert answers.of(out, path, Afi.IPV4, KEY) is first
    hop.ways = (NextHop(b"", "wlan0"),)
    assert not answers.of(out, path, Afi.IPV4, KEY).leaf.accept


def test_peers_on_the_same_terms_are_told_the_same_attributes() -> None:
    table = Table(Afi.IPV4)
    path = Path(Channel("static1", Source.STATIC, table, Resolver(table)), Attrs(), 0.0)
    answer = Answers().of(ACCEPT_ALL, path, Afi.IPV4, KEY)
    inside = Terms(True, 64512, True, 4096, b"\x0a\0\0\1")
    outside = Terms(False, 64512, True, 4096, b"\x0a\0\0\1")
    plain, own = channel(), channel(next_hop=NextHopRule.SELF)
    told = answer.leaving(inside, plain)
    assert told is not None
    assert answer.leaving(inside, channel()) is told
    assert told.local_pref == 100
    there = answer.leaving(outside, plain)
    assert there is not None
    assert there.local_pref is None
    assert answer.leaving(inside, own) is not told


def test_neighbors_that_each_have_their_own_terms_are_not_remembered_for_ever() -> None:
    table = Table(Afi.IPV4)
    path = Path(Channel("static1", Source.STATIC, table, Resolver(table)), Attrs(), 0.0)
    answer = Answers().of(ACCEPT_ALL, path, Afi.IPV4, KEY)
    terms = Terms(False, 64512, True, 4096, b"\x0a\0\0\1", single_hop_dev="eth0")
    first = answer.leaving(terms, channel())
    for number in range(MAX_TERMS):
        other = terms._replace(neighbor=number.to_bytes(4, "big"))
        assert answer.leaving(other, channel()) == first
    assert answer.leaving(terms, channel()) == first
    assert answer.leaving(terms, channel()) is not first


def test_the_kernel_is_looked_at_when_its_protocols_change() -> None:
    ns = node()
    looks = []

    class Port(NamespacePort):
        def routes(self) -> tuple[KernelRoute, ...]:
            looks.append(1)
            return super().routes()

    settings = config()
    speaker = Speaker(settings, random.Random(1), now=0.0, kernel=Port(ns))
    before = len(looks)
    assert before
    more = bgp("Mesh_2", "10.10.95.206", passive=True, ipv4=channel())
    speaker.configure(replace(settings, bgp=(*settings.bgp, more)), now=0.1)
    assert "Mesh_2" in speaker.peers
    assert len(looks) == before
    speaker.configure(replace(settings, direct=DirectConfig(("*",))), now=0.2)
    assert len(looks) > before
