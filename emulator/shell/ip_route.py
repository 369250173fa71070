"""``ip route`` and ``ip neighbour``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from emulator.addr import Prefix, parse_ip
from emulator.errors import UsageError
from emulator.netstack.fib import PROTOCOLS, NextHop, Route, RouteType, protocol_name
from emulator.netstack.records import NeighState
from emulator.netstack.show.neigh import render_ip_neigh
from emulator.netstack.show.route import render_ip_route, render_route_get
from emulator.shell import busybox_ip
from emulator.shell.context import whole_number
from emulator.shell.ip_words import (
    CommandError,
    Request,
    is_verb,
    next_word,
    parse_address,
    parse_hardware,
    parse_number,
    selected,
    style_of,
    unknown_verb,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.netstack.netns import NetNs


# ip route


def route(request: Request) -> None:
    """show, get, add, replace, append, change, delete."""
    verb = request.verb
    if is_verb(verb, "show", "list", "lst"):
        _route_show(request)
    elif verb == "get":
        _route_get(request)
    elif is_verb(verb, "add"):
        request.ns.route_add(_parse_route(request.words))
    elif is_verb(verb, "replace"):
        request.ns.route_replace(_parse_route(request.words))
    elif is_verb(verb, "append", "change", "prepend"):
        mode = next(each for each in ("append", "change", "prepend") if each.startswith(verb))
        request.ns.route_change(_parse_route(request.words), mode=mode)
    elif is_verb(verb, "delete"):
        request.ns.route_del(_parse_route(request.words))
    elif verb == "help":
        raise CommandError("Usage: ip route { list | flush } SELECTOR")
    else:
        raise unknown_verb(request, "route")


def _route_show(request: Request) -> None:
    words = list(request.words)
    table, dev, wanted, protocol = "main", "", "", ""
    while words:
        word = words.pop(0)
        match word:
            case "table":
                table = next_word(words, word)
            case "dev":
                dev = next_word(words, word)
                _link_exists(request.ns, dev)
            case "proto" | "protocol":
                protocol = _protocol(next_word(words, word))
            case "exact" | "root" | "match" | "to":
                wanted = next_word(words, word)
            case "scope" | "type":
                next_word(words, word)
            case _:
                wanted = word
    tables = ("main", "local") if table == "all" else (table,)
    for each in tables:
        routes = request.ns.routes(each)
        if wanted:
            prefix = _prefix(wanted)
            routes = tuple(route for route in routes if route.dst == prefix)
        if request.ctx.style == "busybox":
            text = busybox_ip.render_routes(routes)
        else:
            text = render_ip_route(
                routes,
                style=style_of(request.ctx),
                dev=dev,
                proto=protocol,
                show_table=table == "all",
            )
        request.ctx.out(text)


def _link_exists(ns: NetNs, dev: str) -> None:
    if all(link.name != dev for link in ns.links()):
        raise UsageError(f'Cannot find device "{dev}"')


def _route_get(request: Request) -> None:
    words = [word for word in request.words if word != "to"]
    if not words:
        raise CommandError("need at least a destination address")
    target = words.pop(0)
    oif, source = "", ""
    while words:
        word = words.pop(0)
        if word in ("oif", "dev"):
            oif = next_word(words, word)
        elif word in ("from", "src"):
            source = next_word(words, word)
    try:
        dst = parse_ip(target.partition("/")[0])
    except UsageError:
        raise CommandError(
            f'Error: any valid prefix is expected rather than "{target}".', 1
        ) from None
    output, failure = render_route_get(
        request.ns,
        dst,
        src=parse_address(source) if source else None,
        oif=oif,
        style=style_of(request.ctx),
    )
    if failure:
        raise UsageError(failure)
    request.ctx.out(output)


def _parse_route(words: Sequence[str]) -> Route:
    rest = list(words)
    kind = RouteType.UNICAST
    dst: Prefix | None = None
    fields: dict[str, object] = {}
    while rest:
        word = rest.pop(0)
        if word in ("blackhole", "unreachable", "prohibit", "unicast", "local"):
            kind = RouteType(word)
        elif word == "nexthop":
            fields["nexthops"] = _parse_nexthops(rest)
            break
        elif word == "onlink":
            fields["onlink"] = True
        elif word in ("via", "dev", "src", "metric", "proto", "protocol", "scope", "mtu", "table"):
            value = next_word(rest, word)
            if word in ("via", "src"):
                key = "gateway" if word == "via" else "src"
                fields[key] = parse_address(value)
            elif word in ("metric", "mtu"):
                fields[word] = parse_number(value, word)
            elif word.startswith("proto"):
                fields["protocol"] = _protocol(value)
            else:
                fields[word] = value
        elif word == "to":
            continue
        elif dst is None:
            dst = _prefix(word)
        else:
            raise CommandError(f'Error: either "to" is duplicate, or "{word}" is a garbage.')
    if dst is None:
        raise UsageError("RTNETLINK answers: Invalid argument")
    return Route(dst, type=kind, **fields)  # type: ignore[arg-type]  # checked word by word above


def _protocol(text: str) -> str:
    """The protocol as it is kept: by its name if it has one."""
    number = whole_number(text)
    if number is not None and number <= 255:
        return protocol_name(number)
    if text not in PROTOCOLS.values():
        raise CommandError(f'Error: argument "{text}" is wrong: "protocol" value is invalid')
    return text


def _parse_nexthops(words: list[str]) -> tuple[NextHop, ...]:
    """``via A dev D weight N onlink nexthop via B …``."""
    hops: list[NextHop] = []
    for part in _split(words, "nexthop"):
        rest, hop = list(part), NextHop()
        if not rest:
            raise CommandError('Command line is not complete. Try option "help"')
        while rest:
            word = rest.pop(0)
            match word:
                case "via":
                    hop = replace(hop, gateway=parse_address(next_word(rest, word)))
                case "dev":
                    hop = replace(hop, dev=next_word(rest, word))
                case "weight":
                    hop = replace(hop, weight=parse_number(next_word(rest, word), word))
                case "onlink":
                    hop = replace(hop, onlink=True)
                case _:
                    raise CommandError(
                        f'Error: "nexthop" or end of line is expected instead of "{word}"'
                    )
        hops.append(hop)
    return tuple(hops)


def _split(words: list[str], at: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == at:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _prefix(text: str) -> Prefix:
    if text in ("default", "any", "all", "0/0"):
        return Prefix(0, 0)
    try:
        return Prefix.parse(text)
    except UsageError:
        try:
            Prefix.parse(text, strict=False)
        except UsageError:
            raise CommandError(
                f'Error: any valid prefix is expected rather than "{text}".', 1
            ) from None
        raise UsageError("RTNETLINK answers: Invalid argument") from None


# ip neighbour


def neighbour(request: Request) -> None:
    """show, add, replace, delete, flush."""
    verb = request.verb
    if is_verb(verb, "show", "list", "lst"):
        dev, rest = selected(request)
        if dev:
            _link_exists(request.ns, dev)
        wanted = ""
        pairs = dict(zip(rest[::2], rest[1::2], strict=False))
        state = pairs.get("nud", "")
        if rest and rest[0] not in ("nud", "to", "proxy"):
            wanted = rest[0]
        wanted = pairs.get("to", wanted)
        within = Prefix.parse(wanted, strict=False) if wanted else None
        entries = [
            entry
            for entry in request.ns.neighs()
            if (within is None or entry.ip in within)
            and (not state or state == "all" or entry.state.lower() == state.lower())
        ]
        request.ctx.out(render_ip_neigh(entries, dev=dev))
        return
    if not is_verb(verb, "add", "replace", "change", "delete", "flush"):
        raise unknown_verb(request, "neighbour")
    if is_verb(verb, "flush"):
        dev, _ = selected(request)
        for each in request.ns.neighs():
            if (not dev or each.dev == dev) and each.state not in ("PERMANENT", "NOARP"):
                request.ns.neigh_del(each.dev, each.ip)
        return
    words = list(request.words)
    dev, address, mac, state = "", "", None, "PERMANENT"
    while words:
        word = words.pop(0)
        match word:
            case "dev":
                dev = next_word(words, word)
            case "lladdr":
                mac = parse_hardware(next_word(words, word))
            case "nud":
                given = next_word(words, word)
                state = given.upper()
                if state not in NeighState.__members__:
                    raise CommandError(f'Error: argument "{given}" is wrong: nud state is bad')
            case _:
                address = word
    if not address or not dev:
        raise CommandError("Device and destination are required arguments.")
    _link_exists(request.ns, dev)
    if is_verb(verb, "delete"):
        request.ns.neigh_del(dev, parse_address(address))
    else:
        request.ns.neigh_replace(dev, parse_address(address), mac, state)
