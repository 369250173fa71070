"""Bring iptables' tables to what felix wants, touching nothing of anybody else's; reconciler.

A rule of felix's is known by the hash in its comment, so what is there is compared without reading
rules.  Chains that differ are rewritten, hooks in built-in chains are put back to their places,
chains nobody wants any more go: all of one table in one restore.  Source: felix/iptables/table.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents.calico.felix.names import COMMENT_PREFIX, OWN_PREFIX
from agents.calico.felix.rules import Chain
from emulator.netstack.netfilter.match_plain import CommentMatch

if TYPE_CHECKING:
    from agents.calico.felix.chains import TableRules
    from emulator.netstack.netfilter.netfilter import Netfilter
    from emulator.netstack.netfilter.rules import Rule, Table

# In felix's code: hashes of appended rules are made as if their chain had this name.
APPENDED: Final = "*appends*"


def _hash_of(rule: Rule) -> str:
    """The hash in a rule's comment, "" for a rule that is not felix's."""
    for match in rule.spec.matches:
        if isinstance(match, CommentMatch) and match.text.startswith(COMMENT_PREFIX):
            return match.text[len(COMMENT_PREFIX) :]
    return ""


def appended_lines(chain: Chain) -> tuple[list[str], list[str]]:
    """The rules felix appends to a built-in chain, and their hashes."""
    named = Chain(chain.name + APPENDED, chain.rules)
    return named.lines(), named.hashes()


def restore_text(table: Table, name: str, wanted: TableRules, *, insert: bool) -> str:
    """iptables-restore --noflush input that makes a table what is wanted; "" if it is."""
    declared: list[str] = []
    rules: list[str] = []
    removed: list[str] = []
    own = {chain.name: chain for chain in wanted.chains}
    for chain in wanted.chains:
        present = table.chains.get(chain.name)
        if present is None or [_hash_of(rule) for rule in present.rules] != chain.hashes():
            declared.append(f":{chain.name} - [0:0]")
            rules += [f"-A {chain.name} {line}" for line in chain.lines()]
    for builtin in table.builtins:
        rules += _hook_lines(table, builtin, wanted, insert=insert)
    for present_name in table.chains:
        if present_name.startswith(OWN_PREFIX) and present_name not in own:
            declared.append(f":{present_name} - [0:0]")
            removed.append(f"-X {present_name}")
    if not declared and not rules:
        return ""
    return "\n".join([f"*{name}", *declared, *rules, *removed, "COMMIT", ""])


def _hook_lines(table: Table, builtin: str, wanted: TableRules, *, insert: bool) -> list[str]:
    """Take felix's rules out of a built-in chain and put them where they belong, if need be."""
    first = next((chain for chain in wanted.inserts if chain.name == builtin), Chain(builtin))
    last = next((chain for chain in wanted.appends if chain.name == builtin), Chain(builtin))
    last_lines, last_hashes = appended_lines(last)
    present = [_hash_of(rule) for rule in table.chains[builtin].rules]
    others = [each for each in present if not each]
    head = first.hashes()
    expected = [*head, *others, *last_hashes] if insert else [*others, *head, *last_hashes]
    if present == expected:
        return []
    lines = [
        f"-D {builtin} {number}" for number in range(len(present), 0, -1) if present[number - 1]
    ]
    if insert:
        lines += [f"-I {builtin} 1 {line}" for line in reversed(first.lines())]
    else:
        lines += [f"-A {builtin} {line}" for line in first.lines()]
    return lines + [f"-A {builtin} {line}" for line in last_lines]


def sync_tables(netfilter: Netfilter, wanted: dict[str, TableRules], *, insert: bool) -> int:
    """Apply what differs; returns how many tables were touched.

    Raises RestoreError (a UsageError) with the line that was refused.
    """
    touched = 0
    for name, rules in wanted.items():
        text = restore_text(netfilter.table(name), name, rules, insert=insert)
        if text:
            netfilter.restore(text, noflush=True)
            touched += 1
    return touched
