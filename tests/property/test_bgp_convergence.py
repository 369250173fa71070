"""Whatever happens to speakers and their connections, in the end everybody knows everything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.bird.config import GracefulRestart
from agents.bird.filters import Accept, Filter, If, Reject, net_in
from agents.bird.net import Afi
from tests.bgp_speakers import FAST, World, bgp, calico_bgp, channel, speaker_config

if TYPE_CHECKING:
    from agents.bird.config import BgpConfig, SpeakerConfig

NAMES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
TIMERS = replace(FAST, hold_s=9)
ROUTES = tuple(f"192.168.{i}.0/26" for i in range(4))


class Cluster:
    """Three speakers and what each should announce."""

    def __init__(self, *, graceful: bool, reflector: bool) -> None:
        self.graceful = graceful
        self.reflector = reflector
        self.world = World(latency_s=0.01)
        self.routes: dict[str, tuple[int, ...]] = dict.fromkeys(NAMES, (0,))
        self.refused: dict[str, bool] = dict.fromkeys(NAMES, False)
        # Sessions that one side is not configured for, or with other terms than usual.
        self.unwanted: set[tuple[str, str]] = set()
        self.odd: set[tuple[str, str]] = set()
        self.life = 0
        for name in NAMES:
            self.start(name)

    def peers(self, name: str) -> list[BgpConfig]:
        make = calico_bgp if self.graceful else bgp
        found = []
        for other in NAMES:
            # With a reflector only the first speaks with everybody.
            if other == name or (self.reflector and NAMES[0] not in (name, other)):
                continue
            if (name, other) in self.unwanted:
                continue
            protocol = make(f"to_{other}", other, timers=TIMERS)
            if (name, other) in self.odd:
                protocol = replace(protocol, **ODD)
            client = self.reflector and name == NAMES[0]
            assert protocol.ipv4 is not None
            refuse = Filter((If(net_in("172.16.0.0/12+"), (Reject(),)), Accept()))
            ipv4 = replace(protocol.ipv4, import_filter=refuse if self.refused[name] else ACCEPT)
            found.append(replace(protocol, rr_client=client, ipv4=ipv4))
        return found

    def nets(self, name: str) -> list[str]:
        third = NAMES.index(name)
        return [f"192.168.{16 * third + i}.0/26" for i in self.routes[name]]

    def config(self, name: str) -> SpeakerConfig:
        shared = ["172.16.0.0/24"] if name != NAMES[2] else []
        return speaker_config(name, self.peers(name), [*self.nets(name), *shared])

    def start(self, name: str) -> None:
        self.life += 1
        self.world.add(self.config(name), seed=self.life)

    def check(self) -> None:
        """No route outlives its session unless its peer may be restarting."""
        for speaker in self.world.speakers.values():
            for peer in speaker.peers.values():
                if peer.session is None and not peer.exchange.neighbor_restart.is_active:
                    for chan in peer.exchange.channels.values():
                        assert chan.routes == 0 or peer.life == "flush"
            for table in speaker.tables.values():
                by_channel: dict[int, int] = {}
                best = [
                    entry[0] if isinstance(entry, tuple) else entry
                    for entry in table.routes.values()
                ]
                for entry in table.routes.values():
                    for path in entry if isinstance(entry, tuple) else (entry,):
                        by_channel[id(path.channel)] = by_channel.get(id(path.channel), 0) + 1
                for peer in speaker.peers.values():
                    chan = peer.exchange.channels[Afi.IPV4]
                    if chan.table is table:
                        assert by_channel.get(id(chan), 0) == chan.routes
                        best = (table.best(key) for key in table.routes)
                        preferred = sum(path is not None and path.channel is chan for path in best)
                        assert preferred == chan.preferred

    def expected(self, name: str) -> set[str]:
        found = {net for other in NAMES for net in self.nets(other)}
        if name != NAMES[2] or not self.refused[name]:
            found.add("172.16.0.0/24")
        return found


ACCEPT = channel().import_filter
# Terms that take another session: 2-octet AS numbers, no restart, one path, another hold time.
ODD: dict[str, Any] = {
    "as4": False,
    "graceful_restart": GracefulRestart.OFF,
    "ipv4": channel(),
    "timers": replace(TIMERS, hold_s=3),
}

name = st.sampled_from(NAMES)
action = st.one_of(
    st.tuples(st.just("reset"), name, name),
    st.tuples(st.just("cut"), name, name),
    st.tuples(st.just("heal"), name, name),
    st.tuples(st.just("crash"), name),
    st.tuples(st.just("start"), name),
    st.tuples(st.just("routes"), name, st.sets(st.integers(0, 6))),
    st.tuples(st.just("filter"), name, st.booleans()),
    st.tuples(st.just("toggle"), name, name),
    st.tuples(st.just("unpeer"), name, name),
    st.tuples(st.just("terms"), name, name),
    st.tuples(st.just("restart"), name, name),
    st.tuples(st.just("reload"), name, name),
    st.tuples(st.just("wait"), st.sampled_from((0.005, 0.02, 0.5, 3.0, 20.0))),
)


def act(cluster: Cluster, step: tuple[object, ...]) -> None:
    world = cluster.world
    what, *rest = step
    if what == "wait":
        assert isinstance(rest[0], float)
        world.run(rest[0])
        return
    here = str(rest[0])
    running = here in world.speakers
    there = str(rest[1]) if len(rest) > 1 else ""
    protocol = f"to_{there}"
    has_peer = running and protocol in world.speakers[here].peers
    if what == "reset" and running and here != there:
        world.reset(here, there)
    elif what == "cut" and here != there:
        world.cut.add(frozenset((here, there)))
    elif what == "heal":
        world.cut.discard(frozenset((here, there)))
    elif what == "crash" and running:
        world.crash(here)
    elif what == "start" and not running:
        cluster.start(here)
    elif what == "routes":
        assert isinstance(rest[1], set)
        cluster.routes[here] = tuple(sorted(rest[1]))
        if running:
            world.configure(cluster.config(here))
    elif what == "filter":
        cluster.refused[here] = bool(rest[1])
        if running:
            world.configure(cluster.config(here))
    elif what in ("unpeer", "terms") and here != there:
        changed = cluster.unwanted if what == "unpeer" else cluster.odd
        changed ^= {(here, there)}
        if running:
            world.configure(cluster.config(here))
    elif what == "toggle" and has_peer:
        speaker = world.speakers[here]
        if not speaker.disable(protocol, now=world.now):
            speaker.enable(protocol, now=world.now)
        world.settle(here)
    elif what == "restart" and has_peer:
        world.speakers[here].restart(protocol, now=world.now)
        world.settle(here)
    elif what == "reload" and has_peer:
        world.speakers[here].reload(protocol, now=world.now)
        world.settle(here)


@settings(max_examples=60)
@given(st.booleans(), st.booleans(), st.lists(action, max_size=20))
def test_any_history_ends_with_the_models_routes(
    graceful: bool, reflector: bool, steps: list[tuple[object, ...]]
) -> None:
    cluster = Cluster(graceful=graceful, reflector=reflector)
    for step in steps:
        act(cluster, step)
        cluster.check()
    world = cluster.world
    world.cut.clear()
    cluster.unwanted.clear()
    for missing in NAMES:
        if missing not in world.speakers:
            cluster.start(missing)
        world.configure(cluster.config(missing))
        for protocol in list(world.speakers[missing].peers):
            world.speakers[missing].enable(protocol, now=world.now)
        world.settle(missing)

    def converged() -> bool:
        return all(set(world.table(one)) == cluster.expected(one) for one in NAMES)

    reached = world.run(600, converged)
    assert reached, {one: (set(world.table(one)) ^ cluster.expected(one)) for one in NAMES}
    # What a restart left behind is gone when its time is over, and nothing flaps.
    world.run(130)
    began = len(world.events)
    world.run(60)
    assert converged()
    assert [e for e in world.events[began:] if type(e[2]).__name__ == "SessionDown"] == []
    cluster.check()
