"""Change a table all or nothing.

A ``TableEdit`` collects the commands of one ``iptables`` call, or of one table of a rule file, on
copies of the chains they touch.  ``commit`` checks the whole as the kernel would and only then
puts it in place.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

from emulator.errors import UsageError
from emulator.netstack.netfilter.extension import ParameterError, RuleScope
from emulator.netstack.netfilter.rules import Chain, Rule, RuleSpec, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.netstack.netfilter.command import Command
    from emulator.netstack.netfilter.ipset import IpSets

# Chains a packet may be in at once (NFT_JUMP_STACK_SIZE).
MAX_JUMP_DEPTH: Final = 16
# Rules of one table.  Linux has no limit but memory; at about 700 bytes a rule this is 70 MB.
MAX_RULES: Final = 100_000

NO_CHAIN: Final = "No chain/target/match by that name."
NO_RULE: Final = "Bad rule (does a matching rule exist in that chain?)."


class RefusalError(UsageError):
    """iptables itself refuses the command; exit code 1, text after ``iptables: ``."""


class TransactionError(UsageError):
    """The kernel refuses the change; exit code 4."""


class _Staged:
    """The copy of one chain."""

    __slots__ = ("counters", "policy", "rules")

    def __init__(self, policy: str, rules: list[Rule]) -> None:
        self.policy = policy
        self.rules = rules
        # (packets, bytes) to set on commit; None leaves them
        self.counters: tuple[int, int] | None = None


class TableEdit:
    """Pending changes of one table."""

    def __init__(self, table: Table, sets: IpSets) -> None:
        self.table = table
        self._sets = sets
        self._staged: dict[str, _Staged | None] = {}
        self._references: dict[str, int] | None = None
        self._zeroed: list[Rule] = []
        # When each chain last got a rule, as a running number.
        self._appended: dict[str, int] = {}
        self._sequence = count(1)

    # -- looking ---------------------------------------------------------------------------------

    def _has(self, name: str) -> bool:
        if name in self._staged:
            return self._staged[name] is not None
        return name in self.table.chains

    def _rules(self, name: str) -> list[Rule]:
        staged = self._staged.get(name)
        return staged.rules if staged is not None else self.table.chains[name].rules

    def _names(self) -> list[str]:
        names = [n for n in self.table.chains if self._has(n)]
        return names + [n for n in self._staged if n not in self.table.chains and self._has(n)]

    def _require(self, name: str) -> None:
        if not self._has(name):
            raise RefusalError(NO_CHAIN)

    def _stage(self, name: str) -> _Staged:
        self._require(name)
        staged = self._staged.get(name)
        if staged is None:
            chain = self.table.chains[name]
            staged = self._staged[name] = _Staged(chain.policy, list(chain.rules))
        return staged

    # -- chains ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Empty the table: user chains go, built-in ones are as new."""
        for name in self.table.chains:
            self._staged[name] = None
        for name in self.table.builtins:
            self._staged[name] = _Staged("ACCEPT", [])
            self._set_counters(name, (0, 0))
        self._references = None

    def declare(self, name: str, policy: str, counters: tuple[int, int] | None) -> None:
        """Take a ``:CHAIN POLICY`` line: make or empty a user chain, set a built-in's policy."""
        if name in self.table.builtins:
            if policy != "-":
                self.set_policy(name, policy)
                if counters is not None:
                    self._set_counters(name, counters)
            return
        self._staged[name] = _Staged("", [])
        self._references = None

    def new_chain(self, name: str) -> None:
        """-N"""
        if self._has(name):
            raise RefusalError("Chain already exists.")
        self._staged[name] = _Staged("", [])

    def delete_chain(self, name: str) -> None:
        """-X; without a name every user chain that nothing refers to is a single refusal."""
        if not name:
            for each in [n for n in self._names() if n not in self.table.builtins]:
                self._delete_chain(each, among_all=True)
            return
        self._require(name)
        if name in self.table.builtins:
            raise RefusalError(NO_CHAIN)
        self._delete_chain(name, among_all=False)

    def _delete_chain(self, name: str, *, among_all: bool) -> None:
        references = self._count_references()
        if self._rules(name) and not among_all:
            raise TransactionError(f"CHAIN_DEL failed (Device or resource busy): chain {name}")
        if references.get(name):
            raise TransactionError(f"CHAIN_DEL failed (Device or resource busy): chain {name}")
        self._staged[name] = None

    def _count_references(self) -> dict[str, int]:
        if self._references is None:
            counts: dict[str, int] = {}
            for name in self._names():
                for rule in self._rules(name):
                    spec = rule.spec
                    if spec.jump and spec.target is None:
                        counts[spec.jump] = counts.get(spec.jump, 0) + 1
            self._references = counts
        return self._references

    def rename_chain(self, old: str, new: str) -> None:
        """-E"""
        self._require(old)
        if self._has(new):
            raise RefusalError("File exists.")
        if old in self.table.builtins:
            raise RefusalError(NO_CHAIN)
        self._staged[new] = self._stage(old)
        self._staged[old] = None
        for name in self._names():
            if any(rule.spec.jump == old for rule in self._rules(name)):
                rules = self._stage(name).rules
                for index, rule in enumerate(rules):
                    if rule.spec.jump == old and rule.spec.target is None:
                        # A rule of its own: the one in place stays what it is if this is refused.
                        counter = rule.counter
                        spec = rule.spec._replace(jump=new)
                        rules[index] = Rule(spec, counter.packets, counter.bytes)
        self._references = None

    def set_policy(self, name: str, policy: str) -> None:
        """-P"""
        if policy not in ("ACCEPT", "DROP"):
            raise RefusalError("Bad policy name. Run `dmesg' for more information.")
        if name not in self.table.builtins:
            raise RefusalError("Bad built-in chain name.")
        self._stage(name).policy = policy

    def _set_counters(self, name: str, counters: tuple[int, int]) -> None:
        staged = self._staged[name]
        assert staged is not None
        staged.counters = counters

    # -- rules -----------------------------------------------------------------------------------

    def flush(self, name: str) -> None:
        """-F"""
        for each in [name] if name else self._names():
            self._stage(each).rules = []
        self._references = None

    def zero(self, name: str, number: int) -> None:
        """-Z"""
        for each in [name] if name else self._names():
            staged = self._stage(each)
            if number:
                if number > len(staged.rules):
                    raise RefusalError("Index of deletion too big.")
                self._zeroed.append(staged.rules[number - 1])
            else:
                self._zeroed += staged.rules
                staged.counters = (0, 0)

    def append(self, name: str, specs: tuple[RuleSpec, ...], counters: tuple[int, int]) -> None:
        """-A"""
        rules = self._stage(name).rules
        for spec in specs:
            self._check(name, spec, "RULE_APPEND")
            rules.append(Rule(spec, *counters))
        self._references = None

    def insert(
        self, name: str, number: int, specs: tuple[RuleSpec, ...], counters: tuple[int, int]
    ) -> None:
        """-I; 1 is the first place."""
        rules = self._stage(name).rules
        if number - 1 > len(rules):
            raise RefusalError("Index of insertion too big.")
        for spec in reversed(specs):
            self._check(name, spec, "RULE_INSERT")
            rules.insert(number - 1, Rule(spec, *counters))
        self._references = None

    def replace(self, name: str, number: int, spec: RuleSpec, counters: tuple[int, int]) -> None:
        """-R"""
        rules = self._stage(name).rules
        if number > len(rules):
            raise RefusalError("Index of replacement too big.")
        self._check(name, spec, "RULE_REPLACE")
        rules[number - 1] = Rule(spec, *counters)
        self._references = None

    def delete_number(self, name: str, number: int) -> None:
        """-D by number."""
        rules = self._stage(name).rules
        if number > len(rules):
            raise RefusalError("Index of deletion too big.")
        del rules[number - 1]
        self._references = None

    def delete_spec(self, name: str, spec: RuleSpec) -> None:
        """-D by what the rule says: the first such rule goes."""
        self._require(name)
        index = self._find(name, spec)
        del self._stage(name).rules[index]
        self._references = None

    def check(self, name: str, spec: RuleSpec) -> None:
        """-C: RefusalError if no rule says this."""
        self._require(name)
        self._find(name, spec)

    def _find(self, name: str, spec: RuleSpec) -> int:
        if spec.jump and spec.target is None:
            self._check_jump(spec)
        for index, rule in enumerate(self._rules(name)):
            if rule.spec == spec:
                return index
        raise RefusalError(NO_RULE)

    # -- checks ----------------------------------------------------------------------------------

    def _check(self, chain: str, spec: RuleSpec, operation: str) -> None:
        self._appended[chain] = next(self._sequence)
        if chain in ("PREROUTING", "INPUT") and spec.out_dev:
            raise ParameterError(f"Can't use -o with {chain}\n")
        if chain in ("POSTROUTING", "OUTPUT") and spec.in_dev:
            raise ParameterError(f"Can't use -i with {chain}\n")
        if spec.jump == "DROP" and self.table.name == "nat":
            raise ParameterError(
                '\nThe "nat" table is not intended for filtering, '
                "the use of DROP is therefore inhibited.\n\n"
            )
        for match in spec.matches:
            for name in match.sets:
                if self._sets.find(name) is None:
                    raise ParameterError(f"Set {name} doesn't exist.\n")
        scope = RuleScope(spec.proto, spec.proto_inverted)
        target = spec.target
        if any(
            match.kernel_refuses(scope) or (match.tables and self.table.name not in match.tables)
            for match in spec.matches
        ) or (
            target is not None
            and (
                target.kernel_refuses(scope)
                or (target.tables and self.table.name not in target.tables)
            )
        ):
            raise TransactionError(f"{operation} failed (Invalid argument): rule in chain {chain}")

    def _check_jump(self, spec: RuleSpec) -> None:
        if spec.jump in ("ACCEPT", "DROP", "RETURN") and not spec.goto:
            return
        if spec.jump in self.table.builtins or not self._has(spec.jump):
            raise ParameterError(f"Chain '{spec.jump}' does not exist")

    def validate(self, operation: str) -> None:
        """Check jumps, depth, loops, and where targets may stand, from the built-in chains down."""
        total = 0
        jumps: dict[str, list[str]] = {}
        limits: dict[str, list[frozenset[str]]] = {}
        for name in self._names():
            rules = self._rules(name)
            total += len(rules)
            followers: dict[str, None] = {}
            for rule in rules:
                spec = rule.spec
                for match in spec.matches:
                    if match.chains:
                        limits.setdefault(name, []).append(match.chains)
                if spec.target is not None:
                    if spec.target.chains:
                        limits.setdefault(name, []).append(spec.target.chains)
                elif spec.jump and spec.jump not in followers:
                    self._check_jump(spec)
                    if spec.goto or spec.jump not in ("ACCEPT", "DROP", "RETURN"):
                        followers[spec.jump] = None
            jumps[name] = list(followers)
        if total > MAX_RULES:
            raise TransactionError(
                f"{operation} failed (No buffer space available): table {self.table.name} would "
                f"have {total} rules, the limit is {MAX_RULES}"
            )
        for base in self.table.builtins:
            self._descend(base, jumps, limits, operation)

    def _descend(
        self,
        base: str,
        jumps: dict[str, list[str]],
        limits: dict[str, list[frozenset[str]]],
        operation: str,
    ) -> None:
        height_of: dict[str, int] = {}
        path: list[str] = []

        def refuse(reason: str) -> TransactionError:
            # The kernel checks rule by rule: the newest rule on the way down is what breaks it.
            guilty = max(path, key=lambda name: self._appended.get(name, 0))
            return TransactionError(f"{operation} failed ({reason}): rule in chain {guilty}")

        def height(name: str) -> int:
            """Return how many chains deep a packet can get from here, this one included."""
            known = height_of.get(name)
            if known is not None and len(path) + known <= MAX_JUMP_DEPTH:
                return known
            if name in path or len(path) >= MAX_JUMP_DEPTH:
                raise refuse("Too many links")
            path.append(name)
            if any(base not in allowed for allowed in limits.get(name, ())):
                raise refuse("Invalid argument")
            result = 1 + max((height(follower) for follower in jumps[name]), default=0)
            path.pop()
            height_of[name] = result
            return result

        height(base)

    # -- the end ---------------------------------------------------------------------------------

    def commit(self, operation: str, on_commit: Callable[[Table], None]) -> None:
        """Check everything and put it in place; raises without having changed anything.

        ``operation`` is the name nft gives the change in its errors, e.g. ``RULE_APPEND``.
        """
        if not self._staged:
            return
        self.validate(operation)
        chains = self.table.chains
        for name, staged in self._staged.items():
            if staged is None:
                chains.pop(name, None)
                continue
            chain = chains.get(name)
            if chain is None:
                chain = chains[name] = Chain(name)
            # Other chains' compiled rules hold this object: it is kept while its name lives.
            chain.rules = staged.rules
            chain.policy = staged.policy
            chain.compiled = None
            if staged.counters is not None:
                chain.counter.packets, chain.counter.bytes = staged.counters
        for rule in self._zeroed:
            rule.counter.packets = rule.counter.bytes = 0
        on_commit(self.table)


def apply_command(edit: TableEdit, command: Command) -> None:
    """Make the change of one command on an edit; not for -L, -S, -C."""
    chain, number, specs = command.chain, command.rule_number, command.specs
    match command.letter:
        case "A":
            edit.append(chain, specs, command.counters)
        case "I":
            edit.insert(chain, number or 1, specs, command.counters)
        case "R":
            if len(specs) > 1:
                raise ParameterError(
                    "Replacement rule does not support multiple source or destination addresses"
                )
            edit.replace(chain, number, specs[0], command.counters)
        case "D":
            if number:
                edit.delete_number(chain, number)
            for spec in specs:
                edit.delete_spec(chain, spec)
        case "C":
            for spec in specs:
                edit.check(chain, spec)
        case "F":
            edit.flush(chain)
        case "Z":
            edit.zero(chain, number)
        case "N":
            edit.new_chain(chain)
        case "X":
            edit.delete_chain(chain)
        case "P":
            edit.set_policy(chain, command.policy)
        case "E":
            edit.rename_chain(chain, command.new_name)
        case _:
            raise ParameterError(f"-{command.letter} has no place in a rule file")
