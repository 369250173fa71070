"""Rules and chains as felix writes them, with their hashes; pure.

A rule's fragments are in felix's own spelling (``--jump X``, ``--in-interface cali+``): its hash
is made of them.  Source: felix/iptables/{rules,match_builder,actions}.go.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

from agents.calico.felix.names import COMMENT_PREFIX, rule_hashes

ACCEPT_MARK: Final = 0x10000
PASS_MARK: Final = 0x20000
SCRATCH_0: Final = 0x40000
SCRATCH_1: Final = 0x80000
ALL_MARKS: Final = ACCEPT_MARK | PASS_MARK | SCRATCH_0 | SCRATCH_1
MAX_COMMENT: Final = 256
# Chains whose hashes are remembered: those alike on all nodes, and a full node's (110 pods of two
# chains each), which are compared at every refresh.
MAX_KNOWN_CHAINS: Final = 512

ACCEPT: Final = "--jump ACCEPT"
DROP: Final = "--jump DROP"
RETURN: Final = "--jump RETURN"
REJECT: Final = "--jump REJECT"
_NOT_PLAIN: Final = re.compile(r"[^a-zA-Z0-9 :;,.\-_/()\\|+=?!@#%^&*']")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it matches, what it does, why it is there."""

    match: str = ""
    action: str = ""
    comment: str = ""

    def rendered(self, prefix: str) -> str:
        """The rule behind ``-A CHAIN``, with a fragment of ours (the hash) first."""
        comment = f'-m comment --comment "{self.comment[:MAX_COMMENT]}"' if self.comment else ""
        return " ".join(part for part in (prefix, comment, self.match, self.action) if part)


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain, its rules in order."""

    name: str
    rules: tuple[Rule, ...] = ()

    def hashes(self) -> list[str]:
        """The hash of each rule."""
        return list(_hashes(self))

    def lines(self) -> list[str]:
        """What follows ``-A CHAIN`` of each rule in a rule file."""
        return [
            rule.rendered(f'-m comment --comment "{COMMENT_PREFIX}{text}"')
            for rule, text in zip(self.rules, _hashes(self), strict=True)
        ]


@functools.lru_cache(maxsize=MAX_KNOWN_CHAINS)
def _hashes(chain: Chain) -> tuple[str, ...]:
    rendered = [f"-A {chain.name} {rule.rendered('HASH')}" for rule in chain.rules]
    return tuple(rule_hashes(chain.name, rendered))


def jump(chain: str) -> str:
    """``-j CHAIN``."""
    return f"--jump {chain}"


def goto(chain: str) -> str:
    """``-g CHAIN``."""
    return f"--goto {chain}"


def set_mark(mark: int, mask: int = 0) -> str:
    """Set bits; with ``mask`` clear the others of it."""
    return f"--jump MARK --set-mark {_hex(mark)}/{mask or mark:#x}"


def clear_mark(mark: int) -> str:
    """Clear bits."""
    return f"--jump MARK --set-mark 0/{mark:#x}"


def _hex(value: int) -> str:
    # Go's %#x of zero is 0x0, felix writes a literal 0 where it clears.
    return f"{value:#x}"


def mark_clear(mark: int) -> str:
    """The bits are clear."""
    return f"-m mark --mark 0/{mark:#x}"


def mark_set(mark: int, mask: int = 0) -> str:
    """The bits are set."""
    return f"-m mark --mark {mark:#x}/{mask or mark:#x}"
