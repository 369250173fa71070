"""UPDATEs coming in: from the bytes to the channels of one established session.

Attribute blocks repeat, so each is read once and remembered by its bytes with everything that
follows from it alone: loop checks, RFC 7606's verdict, the next hop's entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agents.bird.attribute_decoder import (
    DecodeContext,
    Decoded,
    decode,
    split_multiprotocol,
    valid_next_hop,
)
from agents.bird.attribute_types import AS_PATH, NEXT_HOP, ORIGIN
from agents.bird.attributes import (
    GRACEFUL_SHUTDOWN,
    Attrs,
    has_community,
    list_contains,
    path_count,
)
from agents.bird.errors import UPDATE_ERROR, BgpPeerError
from agents.bird.net import (
    SAFI_UNICAST,
    Afi,
    NlriError,
    routable,
    split_nlri,
    split_path_nlri,
)
from agents.bird.rib import Path
from agents.bird.update import split_update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agents.bird.capabilities import Negotiated
    from agents.bird.channel import Channel
    from agents.bird.config import BgpConfig

# Attribute blocks remembered per session; a full table's blocks repeat close together.
MAX_KNOWN: Final = 4096


class LoopChecks(NamedTuple):
    """What makes a route come back to us: own AS, own router id, own cluster id (RFC 4456 §8)."""

    local_as: int
    allow_local_as: int
    router_id: int
    cluster_id: int


class Intake:
    """The receiving side of one session."""

    def __init__(
        self,
        config: BgpConfig,
        terms: Negotiated,
        channels: dict[Afi, Channel],
        context: DecodeContext,
        checks: LoopChecks,
        *,
        on_end_of_rib: Callable[[Afi, float], None],
        on_bad: Callable[[str], None],
    ) -> None:
        self._config = config
        self._terms = terms
        self._channels = {afi: channels[afi] for afi in terms.families}
        self._context = context
        self._checks = checks
        self._on_end_of_rib = on_end_of_rib
        self._on_bad = on_bad
        self._known: dict[bytes, Decoded] = {}
        self.updates = 0

    def receive(self, body: bytes, now: float) -> None:
        """One UPDATE; BgpPeerError where RFC 7606 leaves a session reset."""
        self.updates += 1
        withdrawn, block, nlri = split_update(body)
        if not block:
            if not nlri and not withdrawn:
                self._end_of_rib(Afi.IPV4, now)
                return
            if not nlri:
                self._withdraw(Afi.IPV4, withdrawn)
                return
        known, taken = self._known.get(block), None
        if known is None:
            rest, taken = split_multiprotocol(block)
            if taken:
                self._receive_multiprotocol(withdrawn, block, rest, taken, nlri, now)
                return
            known = self._learn(block, block, [])
        if known.malformed and not nlri:
            # RFC 7606 §5.2: whose routes to withdraw is as unknown as the rest.
            raise BgpPeerError(UPDATE_ERROR, 1)
        if withdrawn:
            self._withdraw(Afi.IPV4, withdrawn)
        if nlri:
            self._reach(Afi.IPV4, known, known.attrs.next_hop, nlri, now, NEXT_HOP in known.seen)

    def _learn(self, name: bytes, block: bytes, taken: list[tuple[int, int, bytes]]) -> Decoded:
        found = decode(block, self._context, taken)
        bad = found.bad
        if not bad and not {ORIGIN, AS_PATH} <= found.seen:
            bad = "ORIGIN or AS_PATH is missing"
        attrs = found.attrs
        loop = "" if bad else self._loop(attrs)
        if (
            self._config.honor_graceful_shutdown
            and not self._config.internal
            and has_community(attrs.communities, GRACEFUL_SHUTDOWN)
        ):
            attrs = attrs._replace(local_pref=0)
        found = found._replace(attrs=attrs, bad=bad or loop, looped=bool(loop))
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        if not taken:
            self._known[name] = found
        return found

    def _loop(self, attrs: Attrs) -> str:
        checks = self._checks
        if path_count(attrs.as_path, checks.local_as) > checks.allow_local_as:
            return "our AS is in AS_PATH"
        if attrs.originator_id == checks.router_id:
            return "ORIGINATOR_ID is ours"
        if checks.cluster_id and attrs.cluster_list:
            mine = checks.cluster_id.to_bytes(4, "big")
            if list_contains(attrs.cluster_list, mine):
                return "our cluster is in CLUSTER_LIST"
        return ""

    def _receive_multiprotocol(
        self,
        withdrawn: bytes,
        block: bytes,
        rest: bytes,
        taken: list[tuple[int, int, bytes]],
        nlri: bytes,
        now: float,
    ) -> None:
        found = decode(b"", self._context, taken)
        reach, unreach = found.reach, found.unreach
        known = self._known.get(rest)
        if (rest or nlri or reach is not None) and known is None:
            known = self._learn(rest, rest, [])
        if not nlri and reach is None and (found.malformed or (known and known.malformed)):
            raise BgpPeerError(UPDATE_ERROR, 1)
        if known is not None and found.malformed:
            known = known._replace(bad=found.bad, looped=False)
        if nlri and known is not None and not known.bad and NEXT_HOP not in known.seen:
            # What is wrong with one route of a message is wrong with all (RFC 7606 §2).
            known = known._replace(bad="NEXT_HOP is missing")
        if withdrawn:
            self._withdraw(Afi.IPV4, withdrawn)
        if unreach is not None and unreach.safi == SAFI_UNICAST and unreach.afi in (1, 2):
            afi = Afi(unreach.afi)
            if afi in self._channels:
                if not unreach.nlri and reach is None and not nlri and not withdrawn:
                    self._end_of_rib(afi, now)
                else:
                    self._withdraw(afi, unreach.nlri)
        if known is None:
            return
        if reach is not None and reach.safi == SAFI_UNICAST and reach.afi in (1, 2):
            afi = Afi(reach.afi)
            if afi in self._channels:
                hop = reach.next_hop
                why = valid_next_hop(hop, self._context)
                bad = known if known.bad or not why else known._replace(bad=why)
                self._reach(afi, bad, hop, reach.nlri, now, True)
        if nlri:
            self._reach(Afi.IPV4, known, known.attrs.next_hop, nlri, now, NEXT_HOP in known.seen)

    def _end_of_rib(self, afi: Afi, now: float) -> None:
        if afi in self._channels:
            self._on_end_of_rib(afi, now)

    def _split(self, afi: Afi, nlri: bytes) -> list[tuple[int, Sequence[bytes]]]:
        """The prefixes by path identifier; 0 where none are in use."""
        try:
            if afi not in self._terms.add_path_rx:
                return [(0, split_nlri(afi, nlri))]
            by_id: dict[int, list[bytes]] = {}
            for path_id, key in split_path_nlri(afi, nlri):
                by_id.setdefault(path_id, []).append(key)
        except NlriError as error:
            raise BgpPeerError(UPDATE_ERROR, 10) from error
        return list(by_id.items())

    def _withdraw(self, afi: Afi, nlri: bytes) -> None:
        channel = self._channels.get(afi)
        if channel is None:
            return
        for path_id, keys in self._split(afi, nlri):
            channel.withdraw(path_id, routable(afi, keys, nlri))

    def _reach(
        self, afi: Afi, known: Decoded, next_hop: bytes, nlri: bytes, now: float, has_hop: bool
    ) -> None:
        channel = self._channels.get(afi)
        if channel is None:
            return
        groups = self._split(afi, nlri)
        bad = known.bad
        if not bad and not has_hop:
            bad = "NEXT_HOP is missing"
        if bad and not known.looped:
            self._on_bad(bad)
        attrs = known.attrs
        if attrs.next_hop != next_hop or attrs.preference != channel.preference:
            attrs = attrs._replace(next_hop=next_hop, preference=channel.preference)
        for path_id, keys in groups:
            good = routable(afi, keys, nlri)
            if len(good) != len(keys):
                channel.stats.imp_updates_received += len(keys) - len(good)
                channel.stats.imp_updates_invalid += len(keys) - len(good)
            if bad:
                channel.stats.imp_updates_received += len(good)
                channel.stats.imp_updates_invalid += len(good)
                channel.take_away(path_id, good)
                continue
            within = channel.within_limits(path_id, good)
            if within or channel.trace is not None:
                hop = channel.resolver.entry(next_hop[:16])
                path = Path(channel, attrs, now, path_id=path_id, hop=hop)
                if within:
                    channel.announce(within, path)
                if channel.trace is not None:
                    for key in good:
                        if key not in within:
                            channel.trace.import_refused("ignored [limit]", afi, key, path)
