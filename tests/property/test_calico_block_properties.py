"""AllocationBlock against a model of a queue and a dictionary, through its stored form."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agents.calico import gojson
from agents.calico.errors import UpdateConflictError
from agents.calico.ipam.block import AllocationBlock, ReleaseOptions
from agents.calico.ipam.pools import Reservations
from agents.calico.net import Cidr

CIDR = Cidr.parse("10.0.0.0/28")
HANDLES = st.sampled_from([None, "h1", "h2", "h3"])
SECONDARY = st.sampled_from([None, {}, {"pod": "a"}, {"pod": "b", "node": "n"}])
ORDINALS = st.integers(0, CIDR.size - 1)


class BlockMachine(RuleBasedStateMachine):
    """``held`` maps ordinals to (handle, secondary, sequence number), ``line`` is who is next."""

    def __init__(self) -> None:
        super().__init__()
        self.block = AllocationBlock.new(CIDR, "host:a", now_ns=1, claim_time="")
        self.line = list(range(CIDR.size))
        self.held: dict[int, tuple[str | None, dict[str, str] | None, int]] = {}

    def written(self) -> None:
        """What another process reads after this one has written."""
        self.block.sequence_number += 1
        value = json.loads(gojson.dumps(self.block.to_value()))
        self.block = AllocationBlock.from_value(value)

    @rule(
        count=st.integers(1, 6),
        handle=HANDLES,
        secondary=SECONDARY,
        reserved=st.sampled_from(["", "10.0.0.0/30", "10.0.0.6/31", "10.0.0.15/32"]),
    )
    def auto_assign(
        self, count: int, handle: str | None, secondary: dict[str, str] | None, reserved: str
    ) -> None:
        kept = Reservations([Cidr.parse(reserved)] if reserved else [])
        free = [each for each in self.line if not kept.holds(CIDR.ip(each))]
        assert self.block.free_count(kept) == len(free)
        got = self.block.auto_assign(count, handle, secondary, kept)
        assert [CIDR.ordinal(ip) for ip in got] == free[:count]
        for ordinal in free[:count]:
            self.line.remove(ordinal)
            self.held[ordinal] = (handle, secondary, self.block.sequence_number)
        self.written()

    @rule(ordinal=ORDINALS, handle=HANDLES, secondary=SECONDARY)
    def assign(self, ordinal: int, handle: str | None, secondary: dict[str, str] | None) -> None:
        done = self.block.assign(CIDR.ip(ordinal), handle, secondary)
        assert done is (ordinal not in self.held)
        if done:
            self.line.remove(ordinal)
            self.held[ordinal] = (handle, secondary, self.block.sequence_number)
            self.written()

    @rule(ordinals=st.lists(ORDINALS, min_size=1, max_size=6))
    def release(self, ordinals: list[int]) -> None:
        unique = list(dict.fromkeys(ordinals))
        done = self.block.release([ReleaseOptions(CIDR.ip(each)) for each in ordinals])
        assert [CIDR.ordinal(ip) for ip in done.unallocated] == [
            each for each in unique if each not in self.held
        ]
        freed = [each for each in unique if each in self.held]
        by_handle = [self.held[each][0] for each in freed if self.held[each][0]]
        assert done.by_handle == {each: by_handle.count(each) for each in by_handle}
        for each in freed:
            del self.held[each]
            self.line.append(each)
        self.written()

    @rule(ordinal=ORDINALS, handle=HANDLES, off=st.integers(-1, 1))
    def release_exactly(self, ordinal: int, handle: str | None, off: int) -> None:
        known = self.held.get(ordinal)
        number = (known[2] if known else 0) + off
        options = ReleaseOptions(CIDR.ip(ordinal), handle or "", number)
        refused = off != 0 or (known is not None and handle is not None and handle != known[0])
        if refused:
            before = self.block.to_value()
            with pytest.raises(UpdateConflictError):
                self.block.release([options])
            assert self.block.to_value() == before
            return
        self.block.release([options])
        if known is not None:
            del self.held[ordinal]
            self.line.append(ordinal)
        self.written()

    @rule(handle=st.sampled_from(["h1", "h2", "h3"]))
    def release_by_handle(self, handle: str) -> None:
        mine = sorted(each for each, known in self.held.items() if known[0] == handle)
        assert [CIDR.ordinal(ip) for ip in self.block.ips_by_handle(handle)] == mine
        assert self.block.release_by_handle(handle) == len(mine)
        for each in mine:
            del self.held[each]
            self.line.append(each)
        self.written()

    @invariant()
    def the_block_says_what_the_model_says(self) -> None:
        assert self.block.unallocated == self.line
        assert {CIDR.ordinal(ip): (*who, number) for ip, who, number in self.block.held()} == (
            self.held
        )
        assert self.block.is_empty() is (not self.held)

    @invariant()
    def attributes_are_those_in_use_each_once(self) -> None:
        attributes = self.block.attributes or []
        used = [(handle, secondary) for handle, secondary, _ in self.held.values()]
        assert all(attributes.count(each) == 1 for each in attributes)
        assert all(tuple(each) in used for each in attributes)


TestBlock = BlockMachine.TestCase
