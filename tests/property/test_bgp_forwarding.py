"""Whatever happened, no packet goes in circles: every route leads to who announces the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.bird.filters import Source
from agents.bird.net import Afi, Net, format_address
from tests.bgp_speakers import World, bgp, calico_channel, channel, speaker_config

if TYPE_CHECKING:
    from agents.bird.config import BgpConfig, SpeakerConfig

NAMES = tuple(f"10.0.0.{i}" for i in range(1, 6))
PAIRS = tuple(combinations(NAMES, 2))
# The ASes of the speakers.
LAYOUTS = (
    (65001, 65001, 65002, 65002, 65003),
    (65001, 65001, 65001, 65002, 65002),
    (65001, 65002, 65003, 65004, 65005),
)
NETS = ("192.168.0.0/26", "192.168.0.64/26", "192.168.0.128/32")
# Long enough for hold timers, error waits and what was kept for a restart.
SETTLED_S = 600.0


@dataclass
class Internet:
    """Speakers of some ASes on one link; inside an AS all are joined, or by a reflector.

    ``borders`` are the pairs of different ASes with a session, ``origins`` who announces what.
    """

    ases: dict[str, int]
    reflected: bool
    add_path: bool
    borders: set[tuple[str, str]]
    origins: dict[str, set[str]]
    world: World = field(default_factory=lambda: World(latency_s=0.01))

    def reflector(self, asn: int) -> str:
        """The first speaker of an AS."""
        return next(name for name in NAMES if self.ases[name] == asn)

    def joined(self, a: str, b: str) -> bool:
        if self.ases[a] != self.ases[b]:
            return (a, b) in self.borders or (b, a) in self.borders
        return not self.reflected or self.reflector(self.ases[a]) in (a, b)

    def peers(self, name: str) -> list[BgpConfig]:
        found = []
        for other in NAMES:
            if other == name or not self.joined(name, other):
                continue
            inside = self.ases[name] == self.ases[other]
            found.append(
                bgp(
                    f"to_{other}",
                    other,
                    peer_as=self.ases[other],
                    local_as=self.ases[name],
                    rr_client=inside and self.reflected and self.reflector(self.ases[name]) == name,
                    ipv4=calico_channel() if inside and self.add_path else channel(),
                )
            )
        return found

    def config(self, name: str) -> SpeakerConfig:
        return speaker_config(name, self.peers(name), sorted(self.origins[name]))

    def start(self) -> None:
        for name in NAMES:
            self.world.add(self.config(name))

    def change(self, name: str) -> None:
        self.world.configure(self.config(name))

    def updates(self) -> int:
        """Routes heard so far, by all."""
        return sum(
            channel.stats.imp_updates_received
            for speaker in self.world.speakers.values()
            for peer in speaker.peers.values()
            for channel in peer.exchange.channels.values()
        )

    def way(self, start: str, net: str) -> tuple[list[str], bool]:
        """Where a packet goes from a speaker; true if it arrives where the network is."""
        visited, at = [start], start
        parsed = Net.parse(net)
        while True:
            best = self.world.speakers[at].tables[Afi.IPV4].best(parsed.key)
            if best is None:
                return visited, False
            if best.channel.source is Source.STATIC:
                return visited, True
            at = format_address(best.attrs.next_hop)
            if at in visited:
                return [*visited, at], False
            visited.append(at)


pairs = st.sampled_from(PAIRS)
action = st.one_of(
    st.tuples(st.just("border"), pairs),
    st.tuples(st.just("origin"), st.sampled_from(NAMES), st.sets(st.sampled_from(NETS))),
    st.tuples(st.just("reset"), pairs),
    st.tuples(st.just("cut"), pairs),
    st.tuples(st.just("heal"), pairs),
    st.tuples(st.just("wait"), st.sampled_from((0.005, 0.05, 2.0, 30.0))),
)
internets = st.builds(
    Internet,
    st.sampled_from(LAYOUTS).map(lambda layout: dict(zip(NAMES, layout, strict=True))),
    st.booleans(),
    st.booleans(),
    st.sets(pairs, min_size=5),
    st.fixed_dictionaries({name: st.sets(st.sampled_from(NETS), max_size=2) for name in NAMES}),
)


def act(internet: Internet, what: str, *rest: object) -> None:
    world = internet.world
    if what == "wait":
        (seconds,) = rest
        assert isinstance(seconds, float)
        world.run(seconds)
    elif what == "origin":
        name, nets = rest
        assert isinstance(nets, set)
        internet.origins[str(name)] = nets
        internet.change(str(name))
    else:
        ((a, b),) = rest  # type: ignore[misc]  # of one pair
        if what == "border":
            internet.borders ^= {(a, b)}
            internet.change(a)
            internet.change(b)
        elif what == "reset":
            world.reset(a, b)
        elif what == "cut":
            world.cut.add(frozenset((a, b)))
        else:
            world.cut.discard(frozenset((a, b)))


@settings(max_examples=100)
@given(internets, st.lists(action, min_size=3, max_size=12))
def test_every_route_leads_to_its_network(internet: Internet, steps: list[tuple[str, ...]]) -> None:
    internet.start()
    internet.world.run(30.0)
    for step in steps:
        act(internet, *step)
    world = internet.world
    world.cut.clear()
    world.run(SETTLED_S)
    assert world.is_up(*NAMES)
    heard = internet.updates()
    world.run(5.0)
    assert internet.updates() == heard, "somebody still changes his mind"
    reach = {name: {name} for name in NAMES}
    for _ in NAMES:
        for a, b in PAIRS:
            if internet.joined(a, b):
                reach[a] |= reach[b]
                reach[b] |= reach[a]
    for net in NETS:
        for name in NAMES:
            visited, arrives = internet.way(name, net)
            has_origin = any(net in internet.origins[other] for other in reach[name])
            assert arrives or not has_origin, f"{net} from {name}: {visited}"
            assert has_origin or len(visited) == 1, f"{net} from {name} is still routed: {visited}"
