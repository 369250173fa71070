"""What iptables -L, iptables -S and iptables-save print."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.netstack.netfilter.lexer import PROTOCOLS, format_network

if TYPE_CHECKING:
    from emulator.netstack.netfilter.rules import Chain, NetworkTest, Rule, RuleSpec, Table


class Style(NamedTuple):
    """How a release of iptables prints.

    ``protocol_numbers``: ``-n`` shows 6 and 0 instead of tcp and all (1.8.9 does, 1.4 does not).
    """

    version: str
    protocol_numbers: bool


MODERN: Final = Style("v1.8.9 (nf_tables)", True)
ERA_2017: Final = Style("v1.4.21", False)

_COLUMNS: Final = "target     prot opt source               destination         "
_COLUMNS_VERBOSE: Final = (
    "target     prot opt in     out     source               destination         "
)

# Debian's /etc/networks.
_NETWORKS: Final = {"127.0.0.0": "loopback", "169.254.0.0": "link-local"}


def scaled(value: int) -> str:
    """Print a counter as -v does: exact to 99999, then in K, M, G or T."""
    if value <= 99999:
        return str(value)
    for unit in "KMG":
        value = (value + 500) // 1000
        if value <= 9999:
            return f"{value}{unit}"
    return f"{(value + 500) // 1000}T"


def _count(value: int, exact: bool) -> str:
    if exact:
        return f"{value:8d} "
    text = scaled(value)
    return f"{text:>5} "


def _address(test: NetworkTest | None, numeric: bool) -> str:
    if test is None:
        return "0.0.0.0/0" if numeric else "anywhere"
    text = format_network(test.network, test.mask, save=False)
    if numeric:
        return text
    if text == "127.0.0.1":
        return "localhost"
    network, slash, length = text.partition("/")
    return f"{_NETWORKS.get(network, network)}/{length}" if slash else text


def _device(name: str, inverted: bool, numeric: bool) -> str:
    if not name:
        return "*" if numeric else "any"
    return f"!{name}" if inverted else name


def _protocol(spec: RuleSpec, numeric: bool, style: Style) -> str:
    if numeric and style.protocol_numbers:
        return str(spec.proto)
    return PROTOCOLS.get(spec.proto, str(spec.proto)) if spec.proto else "all"


def render_rule(
    rule: Rule, number: int, flags: frozenset[str], *, verbose: bool, style: Style
) -> str:
    """Return one line of ``iptables -L``; ``flags`` holds n, x and 0 (line numbers)."""
    spec = rule.spec
    numeric = "n" in flags
    parts = [f"{number:<4d} " if "0" in flags else ""]
    if verbose:
        exact = "x" in flags
        parts.append(_count(rule.counter.packets, exact) + _count(rule.counter.bytes, exact))
    sign = "!" if spec.proto_inverted else " "
    protocol = _protocol(spec, numeric, style)
    option = {0: "--", 1: "-f", -1: "!f"}[spec.fragment]
    parts.append(f"{spec.jump:<9} {sign}{protocol:<4} {option} ")
    if verbose:
        in_dev = _device(spec.in_dev, spec.in_inverted, numeric)
        out_dev = _device(spec.out_dev, spec.out_inverted, numeric)
        parts.append(f" {in_dev:<6} {out_dev:<6} ")
    for test in (spec.src, spec.dst):
        sign = "!" if test is not None and test.inverted else " "
        parts.append(f"{sign}{_address(test, numeric):<19} ")
    if spec.goto:
        parts.append("[goto] ")
    for match in spec.matches:
        text = match.listing(numeric)
        if text:
            parts.append(f" {text}")
    if spec.target is not None and (text := spec.target.listing(numeric)):
        parts.append(f" {text}")
    return "".join(parts) + "\n"


def render_chain(
    chain: Chain,
    references: int,
    flags: frozenset[str],
    *,
    verbose: bool,
    style: Style,
    only: int = 0,
) -> str:
    """Return a chain as ``iptables -L`` shows it; ``only`` is a rule number to show alone."""
    if only:
        rules = chain.rules[only - 1 : only]
        return "".join(
            render_rule(rule, only, flags, verbose=verbose, style=style) for rule in rules
        )
    if not chain.policy:
        head = f"Chain {chain.name} ({references} references)\n"
    elif verbose:
        exact = "x" in flags
        packets = str(chain.counter.packets) if exact else scaled(chain.counter.packets)
        octets = str(chain.counter.bytes) if exact else scaled(chain.counter.bytes)
        head = f"Chain {chain.name} (policy {chain.policy} {packets} packets, {octets} bytes)\n"
    else:
        head = f"Chain {chain.name} (policy {chain.policy})\n"
    columns = "num  " if "0" in flags else ""
    if verbose:
        columns += "    pkts      bytes " if "x" in flags else " pkts bytes "
        columns += _COLUMNS_VERBOSE
    else:
        columns += _COLUMNS
    rows = [
        render_rule(rule, number, flags, verbose=verbose, style=style)
        for number, rule in enumerate(chain.rules, 1)
    ]
    return head + columns + "\n" + "".join(rows)


def render_list(
    table: Table, chain: str, only: int, flags: frozenset[str], *, verbose: bool, style: Style
) -> str:
    """Return ``iptables -L [chain [number]]``."""
    references = table.references()
    chains = [table.chains[chain]] if chain else list(table.ordered())
    return "\n".join(
        render_chain(each, references[each.name], flags, verbose=verbose, style=style, only=only)
        for each in chains
    )


def _counters(rule: Rule) -> str:
    return f"-c {rule.counter.packets} {rule.counter.bytes}"


def rule_line(chain: str, spec: RuleSpec, counters: str = "") -> str:
    """Return ``-A CHAIN …``."""
    return f"-A {chain} {spec.save(counters)}".rstrip(" ")


def render_rules(table: Table, chain: str, only: int, *, verbose: bool) -> str:
    """Return ``iptables -S [chain [number]]``."""
    chains = [table.chains[chain]] if chain else list(table.ordered())
    lines: list[str] = []
    if not only:
        for each in chains:
            if not each.policy:
                lines.append(f"-N {each.name}")
            elif verbose:
                counter = each.counter
                lines.append(f"-P {each.name} {each.policy} -c {counter.packets} {counter.bytes}")
            else:
                lines.append(f"-P {each.name} {each.policy}")
    for each in chains:
        rules = each.rules[only - 1 : only] if only else each.rules
        lines += [rule_line(each.name, r.spec, _counters(r) if verbose else "") for r in rules]
    return "".join(f"{line}\n" for line in lines)


def render_save(table: Table, *, counters: bool, style: Style, epoch_s: float) -> str:
    """Return one table as iptables-save prints it; ``epoch_s`` is the date in its comments."""
    date = datetime.fromtimestamp(epoch_s, tz=UTC)
    stamp = f"{date:%a %b} {date.day:2d} {date:%H:%M:%S %Y}"
    lines = [f"# Generated by iptables-save {style.version} on {stamp}", f"*{table.name}"]
    for chain in table.ordered():
        policy = chain.policy or "-"
        lines.append(f":{chain.name} {policy} [{chain.counter.packets}:{chain.counter.bytes}]")
    for chain in table.ordered():
        for rule in chain.rules:
            prefix = f"[{rule.counter.packets}:{rule.counter.bytes}] " if counters else ""
            lines.append(prefix + rule_line(chain.name, rule.spec))
    lines += ["COMMIT", f"# Completed on {stamp}"]
    return "".join(f"{line}\n" for line in lines)
