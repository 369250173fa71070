"""ip: iproute2's objects link, address, route, neighbour, tunnel, netns and rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import UsageError
from emulator.shell.ip_link import address, link
from emulator.shell.ip_route import neighbour, route
from emulator.shell.ip_tunnel import tunnel
from emulator.shell.ip_words import (
    CommandError,
    Options,
    Request,
    is_verb,
    unknown_verb,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_OBJECTS = ("address", "link", "route", "neighbour", "neighbor", "netns", "rule", "tunnel", "help")


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
            raise CommandError(f'Option "-{word}" is unknown, try "ip -help".')
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
            raise CommandError(f'Object "{name}" is unknown, try "ip help".', 1)
        rest = options.words[1:]
        verb = rest[0] if rest else "show"
        request = Request(ctx, ns, options, verb, rest[1:])
        match found:
            case "address":
                address(request)
            case "link":
                link(request)
            case "route":
                route(request)
            case "neighbour" | "neighbor":
                neighbour(request)
            case "tunnel":
                tunnel(request)
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
    except CommandError as error:
        ctx.err(f"{error}\n")
        return error.code
    except UsageError as error:
        ctx.err(f"{error}\n")
        return 1 if str(error).startswith(("Cannot find device", "Device ")) else 2
    return 0


async def _netns(request: Request) -> int:
    from emulator.shell.registry import run_command

    ctx, verb, words = request.ctx, request.verb, request.words
    if is_verb(verb, "list", "show", "lst"):
        names = [name for name in ctx.kernel.netns_names() if name != ctx.kernel.root.name]
        ctx.out("".join(f"{name}\n" for name in reversed(names)))
    elif verb == "exec":
        if len(words) < 2:
            raise CommandError("No command specified" if words else "No netns name specified")
        inner = ctx.subshell()
        inner.ns = ctx.kernel.netns(words[0])
        inner.network = type(ctx.network)(inner.ns, ctx.network.loop)
        return await run_command(inner, words[1:])
    elif is_verb(verb, "add") and words:
        ctx.kernel.netns_add(words[0])
    elif is_verb(verb, "delete") and words:
        ctx.kernel.netns_del(words[0])
    elif not words:
        raise CommandError("No netns name specified")
    else:
        raise unknown_verb(request, "netns")
    return 0
