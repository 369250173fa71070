"""ip: iproute2's objects link, address, route, neighbour, netns and rule as verbs and dumps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from emulator.addr import Prefix, parse_ip, parse_mac
from emulator.errors import UsageError
from emulator.netstack.fib import Route, RouteType
from emulator.netstack.show.link import (
    render_ip_addr,
    render_ip_addr_brief,
    render_ip_addr_oneline,
    render_ip_link,
    render_ip_link_brief,
)
from emulator.netstack.show.neigh import render_ip_neigh
from emulator.netstack.show.route import render_ip_route, render_route_get
from emulator.shell import busybox_ip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.netstack.netns import NetNs
    from emulator.netstack.show.route import Style
    from emulator.shell.context import ShellContext

USAGE = """Usage: ip [ OPTIONS ] OBJECT { COMMAND | help }
       ip [ -force ] -batch filename
where  OBJECT := { address | addrlabel | amt | fou | help | ila | ioam | l2tp |
                   link | macsec | maddress | monitor | mptcp | mroute | mrule |
                   neighbor | neighbour | netconf | netns | nexthop | ntable |
                   ntbl | route | rule | sr | tap | tcpmetrics |
                   token | tunnel | tuntap | vrf | xfrm }
       OPTIONS := { -V[ersion] | -s[tatistics] | -d[etails] | -r[esolve] |
                    -h[uman-readable] | -iec | -j[son] | -p[retty] |
                    -f[amily] { inet | inet6 | mpls | bridge | link } |
                    -4 | -6 | -M | -B | -0 |
                    -l[oops] { maximum-addr-flush-attempts } | -br[ief] |
                    -o[neline] | -t[imestamp] | -ts[hort] | -b[atch] [filename] |
                    -rc[vbuf] [size] | -n[etns] name | -N[umeric] | -a[ll] |
                    -c[olor]}
"""
BUSYBOX_USAGE = """BusyBox v1.36.1 (2024-06-10 07:11:47 UTC) multi-call binary.

Usage: ip [OPTIONS] address|route|link|tunnel|neigh|rule [ARGS]

OPTIONS := -f[amily] inet|inet6|link | -o[neline]

ip addr add|del IFADDR dev IFACE | show|flush [dev IFACE] [to PREFIX]
ip route list|flush|add|del|change|append|replace|test ROUTE
ip link set IFACE [up|down] [arp on|off] [multicast on|off]
\t[promisc on|off] [mtu NUM] [name NAME] [qlen NUM] [address MAC]
\t[master IFACE | nomaster] [netns PID]
ip neigh show|flush [to PREFIX] [dev DEV] [nud STATE]
ip rule [list] | add|del SELECTOR ACTION
"""
_LINK_WORDS = (
    *("dev", "name", "link", "type", "address", "mtu", "id", "local", "remote", "dstport"),
    *("srcport", "netns", "ageing", "ttl"),
)
_OBJECTS = ("address", "link", "route", "neighbour", "neighbor", "netns", "rule", "help")


@dataclass(slots=True)
class Options:
    """Options before the object; ``style`` is the era's spacing of routes."""

    family: str = ""
    statistics: bool = False
    details: bool = False
    brief: bool = False
    oneline: bool = False
    netns: str = ""
    words: list[str] = field(default_factory=list)


class _Request(NamedTuple):
    ctx: ShellContext
    ns: NetNs
    options: Options
    verb: str
    words: list[str]


class _CommandError(UsageError):
    """The command line is wrong: exit code 255 (or what the tool gives)."""

    def __init__(self, text: str, code: int = 255) -> None:
        super().__init__(text)
        self.code = code


def parse_options(argv: Sequence[str]) -> Options:
    """Split the options off; UsageError for an unknown one."""
    options = Options()
    words = list(argv[1:])
    while words and words[0].startswith("-"):
        word = words.pop(0).lstrip("-")
        if word in ("4", "6", "0"):
            options.family = {"4": "inet", "6": "inet6", "0": "link"}[word]
        elif (word and "statistics".startswith(word)) or word == "stats":
            options.statistics = True
        elif len(word) > 1 and "brief".startswith(word):
            options.brief = True
        elif word and "details".startswith(word):
            options.details = True
        elif word and "oneline".startswith(word):
            options.oneline = True
        elif word and "netns".startswith(word) and words:
            options.netns = words.pop(0)
        elif word and "family".startswith(word) and words:
            options.family = words.pop(0)
        elif word and ("color".startswith(word.partition("=")[0]) or word in ("N", "h", "r")):
            continue
        else:
            raise _CommandError(f'Option "-{word}" is unknown, try "ip -help".')
    options.words = words
    return options


async def ip(ctx: ShellContext, argv: Sequence[str]) -> int:
    """The command."""
    try:
        options = parse_options(argv)
        if not options.words:
            ctx.err(BUSYBOX_USAGE if ctx.style == "busybox" else USAGE)
            return 1 if ctx.style == "busybox" else 255
        ns = ctx.kernel.netns(options.netns) if options.netns else ctx.ns
        name = options.words[0]
        found = next((each for each in _OBJECTS if each.startswith(name)), "")
        if not found:
            raise _CommandError(f'Object "{name}" is unknown, try "ip help".', 1)
        rest = options.words[1:]
        verb = rest[0] if rest else "show"
        request = _Request(ctx, ns, options, verb, rest[1:])
        match found:
            case "address":
                _address(request)
            case "link":
                _link(request)
            case "route":
                _route(request)
            case "neighbour" | "neighbor":
                _neighbour(request)
            case "netns":
                return await _netns(request)
            case "rule":
                ctx.out(
                    "0:\tfrom all lookup local\n32766:\tfrom all lookup main\n"
                    "32767:\tfrom all lookup default\n"
                )
            case _:
                ctx.err(USAGE)
                return 255
    except _CommandError as error:
        ctx.err(f"{error}\n")
        return error.code
    except UsageError as error:
        ctx.err(f"{error}\n")
        return 1 if str(error).startswith(("Cannot find device", "Device ")) else 2
    return 0


def _style(ctx: ShellContext) -> Style:
    return "modern" if ctx.era == "modern" else "2017"


def _is(verb: str, *names: str) -> bool:
    """iproute2 takes any prefix of a command."""
    return any(name.startswith(verb) for name in names)


def _unknown(request: _Request, obj: str) -> _CommandError:
    return _CommandError(f'Command "{request.verb}" is unknown, try "ip {obj} help".')


def _device(ns: NetNs, name: str) -> str:
    if all(link.name != name for link in ns.links()):
        raise UsageError(f'Device "{name}" does not exist.')
    return name


def _selected(request: _Request) -> tuple[str, list[str]]:
    """The device of a show command, and the words that are left."""
    words, dev = list(request.words), ""
    rest: list[str] = []
    while words:
        word = words.pop(0)
        if word == "dev" and words:
            dev = words.pop(0)
        elif word in (
            "type",
            "master",
            "up",
            "scope",
            "to",
            "table",
            "proto",
            "root",
            "via",
            "nud",
        ):
            rest.append(word)
            if word not in ("up",) and words:
                rest.append(words.pop(0))
        else:
            rest.append(word)
    return dev, rest


# ip link


def _link(request: _Request) -> None:
    verb = request.verb
    if _is(verb, "show", "list", "lst"):
        dev, rest = _selected(request)
        pairs = dict(zip(rest[::2], rest[1::2], strict=False))
        kind, master = pairs.pop("type", ""), pairs.pop("master", "")
        if rest and not kind and not master:
            dev = dev or rest[0]
        if dev:
            _device(request.ns, dev)
        links = [
            link
            for link in request.ns.links()
            if (not dev or link.name == dev)
            and (not kind or link.kind == kind)
            and (not master or link.master == master)
        ]
        options = request.options
        if request.ctx.style == "busybox":
            text = busybox_ip.render_links(links)
        elif options.brief:
            text = render_ip_link_brief(links)
        else:
            text = render_ip_link(
                links,
                style=_style(request.ctx),
                statistics=options.statistics,
                details=options.details,
                oneline=options.oneline,
            )
        request.ctx.out(text)
    elif _is(verb, "set"):
        _link_set(request)
    elif _is(verb, "add"):
        _link_add(request)
    elif _is(verb, "delete"):
        words = [word for word in request.words if word != "dev"]
        if not words:
            raise _CommandError('Not enough information: "dev" argument is required.')
        request.ns.link_del(words[0])
    else:
        raise _unknown(request, "link")


def _link_set(request: _Request) -> None:
    words, ns = list(request.words), request.ns
    if words[:1] == ["dev"]:
        words.pop(0)
    if not words:
        raise _CommandError('Not enough information: "dev" argument is required.')
    name = words.pop(0)
    if all(link.name != name for link in ns.links()):
        raise UsageError(f'Cannot find device "{name}"')
    while words:
        word = words.pop(0)
        if word in ("up", "down"):
            ns.link_set(name, up=word == "up")
            continue
        if word == "nomaster":
            ns.link_set(name, master="")
            continue
        value = _next(words, word)
        match word:
            case "mtu":
                ns.link_set(name, mtu=_int(value, "mtu"))
            case "address":
                ns.link_set(name, mac=_mac(value))
            case "master":
                ns.link_set(name, master=value)
            case "name":
                ns.link_set(name, new_name=value)
                name = value
            case "netns":
                ns.link_set(name, netns=value)
            case "hairpin":
                ns.link_set(name, hairpin=value == "on")
            case "txqueuelen" | "qlen" | "txqlen":
                ns.link_set(name, txqlen=_int(value, "txqueuelen"))
            case "type" | "arp" | "multicast" | "promisc":
                continue
            case _:
                raise _CommandError(f'Error: either "dev" is duplicate, or "{word}" is a garbage.')


def _link_add(request: _Request) -> None:
    words = list(request.words)
    name = kind = ""
    attrs: dict[str, object] = {}
    mac: bytes | None = None
    mtu: int | None = None
    while words:
        word = words.pop(0)
        if word in ("nolearning", "learning"):
            attrs["learning"] = word == "learning"
            continue
        if word == "peer":
            if words[:1] == ["name"]:
                words.pop(0)
            attrs["peer"] = _next(words, "peer")
            continue
        if word not in _LINK_WORDS:
            if name:
                raise _CommandError(f'Error: either "dev" is duplicate, or "{word}" is a garbage.')
            name = word
            continue
        value = _next(words, word)
        match word:
            case "type":
                kind = value
            case "name":
                name = value
            case "dev" | "link":
                if kind or name:
                    attrs["dev"] = value
                else:
                    name = value
            case "address":
                mac = _mac(value)
            case "mtu":
                mtu = _int(value, "mtu")
            case "id":
                attrs["vni"] = _int(value, "id")
            case "local" | "remote":
                attrs[word] = parse_ip(value)
            case "dstport":
                attrs["port"] = _int(value, "dstport")
            case "srcport":
                attrs["srcport"] = (_int(value, word), _int(_next(words, word), word))
            case "netns":
                attrs["peer_ns"] = value
            case "ageing":
                attrs["ageing_s"] = _int(value, "ageing")
    if not kind:
        raise _CommandError('Not enough information: "type" argument is required')
    if not name:
        raise _CommandError('Not enough information: "dev" argument is required.')
    request.ns.link_add(name, kind, mac=mac, mtu=mtu, **attrs)


# ip address


def _address(request: _Request) -> None:
    verb = request.verb
    if _is(verb, "show", "list", "lst"):
        dev, rest = _selected(request)
        if not dev and rest and rest[0] not in ("up", "type", "scope", "to", "master"):
            dev = rest[0]
        if dev:
            _device(request.ns, dev)
        request.ctx.out(_addresses(request, dev))
    elif _is(verb, "add", "replace", "change"):
        _address_change(request, remove=False)
    elif _is(verb, "delete"):
        _address_change(request, remove=True)
    elif _is(verb, "flush"):
        dev, rest = _selected(request)
        dev = dev or (rest[0] if rest else "")
        if not dev:
            raise _CommandError("Flush requires arguments.")
        for each in [a for a in request.ns.addrs() if a.dev == _device(request.ns, dev)]:
            request.ns.addr_del(dev, each.ip, each.length)
    else:
        raise _unknown(request, "address")


def _addresses(request: _Request, dev: str) -> str:
    ns, options = request.ns, request.options
    if options.family == "inet6":
        return ""
    links = [link for link in ns.links() if not dev or link.name == dev]
    addrs = [each for each in ns.addrs() if not dev or each.dev == dev]
    if request.ctx.style == "busybox":
        return busybox_ip.render_links(links, addrs)
    if options.brief:
        return render_ip_addr_brief(links, addrs)
    if options.oneline:
        return render_ip_addr_oneline(addrs)
    return render_ip_addr(
        links,
        addrs,
        style=_style(request.ctx),
        statistics=options.statistics,
        inet_only=options.family == "inet",
    )


def _address_change(request: _Request, *, remove: bool) -> None:
    words = list(request.words)
    dev = text = ""
    scope = "global"
    broadcast: int | None = None
    plus = False
    while words:
        word = words.pop(0)
        match word:
            case "dev":
                dev = _next(words, word)
            case "scope":
                scope = _next(words, word)
            case "brd" | "broadcast":
                value = _next(words, word)
                plus = value == "+"
                broadcast = None if plus else parse_ip(value)
            case "noprefixroute" | "label" | "local":
                if word == "local":
                    text = _next(words, word)
            case _:
                text = word
    if not dev:
        raise _CommandError('Not enough information: "dev" argument is required.')
    if not text:
        raise _CommandError("RTNETLINK answers: Invalid argument", 2)
    ip_text, _, length_text = text.partition("/")
    try:
        address, length = parse_ip(ip_text), int(length_text or 32)
    except (UsageError, ValueError):
        raise _CommandError(
            f'Error: any valid prefix is expected rather than "{text}".', 1
        ) from None
    if plus:
        broadcast = Prefix.of(address, length).broadcast
    if remove:
        request.ns.addr_del(dev, address, length)
    else:
        request.ns.addr_add(dev, address, length, scope=scope, broadcast=broadcast)


# ip route


def _route(request: _Request) -> None:
    verb = request.verb
    if _is(verb, "show", "list", "lst"):
        _route_show(request)
    elif verb == "get":
        _route_get(request)
    elif _is(verb, "add"):
        request.ns.route_add(_parse_route(request.words))
    elif _is(verb, "replace"):
        request.ns.route_replace(_parse_route(request.words))
    elif _is(verb, "append", "change", "prepend"):
        mode = next(each for each in ("append", "change", "prepend") if each.startswith(verb))
        request.ns.route_change(_parse_route(request.words), mode=mode)
    elif _is(verb, "delete"):
        request.ns.route_del(_parse_route(request.words))
    elif verb == "help":
        raise _CommandError("Usage: ip route { list | flush } SELECTOR")
    else:
        raise _unknown(request, "route")


def _route_show(request: _Request) -> None:
    words = list(request.words)
    table, dev, wanted, protocol = "main", "", "", ""
    while words:
        word = words.pop(0)
        match word:
            case "table":
                table = _next(words, word)
            case "dev":
                dev = _next(words, word)
                _link_exists(request.ns, dev)
            case "proto" | "protocol":
                protocol = _next(words, word)
            case "exact" | "root" | "match" | "to":
                wanted = _next(words, word)
            case "scope" | "type":
                _next(words, word)
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
                style=_style(request.ctx),
                dev=dev,
                proto=protocol,
                show_table=table == "all",
            )
        request.ctx.out(text)


def _link_exists(ns: NetNs, dev: str) -> None:
    if all(link.name != dev for link in ns.links()):
        raise UsageError(f'Cannot find device "{dev}"')


def _route_get(request: _Request) -> None:
    words = [word for word in request.words if word != "to"]
    if not words:
        raise _CommandError("need at least a destination address")
    target = words.pop(0)
    oif, source = "", ""
    while words:
        word = words.pop(0)
        if word in ("oif", "dev"):
            oif = _next(words, word)
        elif word in ("from", "src"):
            source = _next(words, word)
    try:
        dst = parse_ip(target.partition("/")[0])
    except UsageError:
        raise _CommandError(
            f'Error: any valid prefix is expected rather than "{target}".', 1
        ) from None
    output, failure = render_route_get(
        request.ns, dst, src=_ip(source) if source else None, oif=oif, style=_style(request.ctx)
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
        elif word == "onlink":
            fields["onlink"] = True
        elif word in ("via", "dev", "src", "metric", "proto", "protocol", "scope", "mtu", "table"):
            value = _next(rest, word)
            if word in ("via", "src"):
                key = "gateway" if word == "via" else "src"
                fields[key] = _ip(value)
            elif word in ("metric", "mtu"):
                fields[word] = _int(value, word)
            else:
                fields["protocol" if word.startswith("proto") else word] = value
        elif word == "to":
            continue
        elif dst is None:
            dst = _prefix(word)
        else:
            raise _CommandError(f'Error: either "to" is duplicate, or "{word}" is a garbage.')
    if dst is None:
        raise UsageError("RTNETLINK answers: Invalid argument")
    return Route(dst, type=kind, **fields)  # type: ignore[arg-type]  # checked word by word above


def _prefix(text: str) -> Prefix:
    if text in ("default", "any", "all", "0/0"):
        return Prefix(0, 0)
    try:
        return Prefix.parse(text)
    except UsageError:
        try:
            Prefix.parse(text, strict=False)
        except UsageError:
            raise _CommandError(
                f'Error: any valid prefix is expected rather than "{text}".', 1
            ) from None
        raise UsageError("RTNETLINK answers: Invalid argument") from None


# ip neighbour


def _neighbour(request: _Request) -> None:
    verb = request.verb
    if _is(verb, "show", "list", "lst"):
        dev, rest = _selected(request)
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
    if not _is(verb, "add", "replace", "change", "delete", "flush"):
        raise _unknown(request, "neighbour")
    if _is(verb, "flush"):
        dev, _ = _selected(request)
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
                dev = _next(words, word)
            case "lladdr":
                mac = _mac(_next(words, word))
            case "nud":
                state = _next(words, word).upper()
            case _:
                address = word
    if not address or not dev:
        raise _CommandError("Device and destination are required arguments.")
    _link_exists(request.ns, dev)
    if _is(verb, "delete"):
        request.ns.neigh_del(dev, _ip(address))
    else:
        request.ns.neigh_replace(dev, _ip(address), mac, state)


# ip netns


async def _netns(request: _Request) -> int:
    from emulator.shell.registry import run_command

    ctx, verb, words = request.ctx, request.verb, request.words
    if _is(verb, "list", "show", "lst"):
        names = [name for name in ctx.kernel.netns_names() if name != ctx.kernel.root.name]
        ctx.out("".join(f"{name}\n" for name in reversed(names)))
    elif verb == "exec":
        if len(words) < 2:
            raise _CommandError("No command specified" if words else "No netns name specified")
        inner = ctx.subshell()
        inner.ns = ctx.kernel.netns(words[0])
        inner.network = type(ctx.network)(inner.ns, ctx.network.loop)
        return await run_command(inner, words[1:])
    elif _is(verb, "add") and words:
        ctx.kernel.netns_add(words[0])
    elif _is(verb, "delete") and words:
        ctx.kernel.netns_del(words[0])
    elif not words:
        raise _CommandError("No netns name specified")
    else:
        raise _unknown(request, "netns")
    return 0


# Values


def _next(words: list[str], after: str) -> str:
    if not words:
        raise _CommandError('Command line is not complete. Try option "help"')
    return words.pop(0)


def _int(text: str, name: str) -> int:
    if not text.isdigit():
        raise _CommandError(f'Error: argument "{text}" is wrong: Invalid "{name}" value')
    return int(text)


def _ip(text: str) -> int:
    try:
        return parse_ip(text)
    except UsageError:
        raise _CommandError(
            f'Error: any valid address is expected rather than "{text}".', 1
        ) from None


def _mac(text: str) -> bytes:
    try:
        return parse_mac(text)
    except UsageError:
        raise _CommandError(f'"{text}" is invalid lladdr.') from None
