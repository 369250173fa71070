"""``ip link`` and ``ip address``."""

from __future__ import annotations

from emulator.addr import Prefix, parse_ip
from emulator.errors import UsageError
from emulator.netstack.show.link import (
    render_ip_addr,
    render_ip_addr_brief,
    render_ip_addr_oneline,
    render_ip_link,
    render_ip_link_brief,
)
from emulator.shell import busybox_ip
from emulator.shell.context import whole_number
from emulator.shell.ip_words import (
    CommandError,
    Request,
    is_verb,
    need_device,
    next_word,
    parse_hardware,
    parse_number,
    selected,
    style_of,
    unknown_verb,
)

_LINK_WORDS = (
    *("dev", "name", "link", "type", "address", "mtu", "id", "local", "remote", "dstport"),
    *("srcport", "netns", "ageing", "ttl"),
)


# ip link


def link(request: Request) -> None:
    """show, set, add, delete."""
    verb = request.verb
    if is_verb(verb, "show", "list", "lst"):
        dev, rest = selected(request)
        pairs = dict(zip(rest[::2], rest[1::2], strict=False))
        kind, master = pairs.pop("type", ""), pairs.pop("master", "")
        if rest and not kind and not master:
            dev = dev or rest[0]
        if dev:
            need_device(request.ns, dev)
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
                style=style_of(request.ctx),
                statistics=options.statistics,
                details=options.details,
                oneline=options.oneline,
            )
        request.ctx.out(text)
    elif is_verb(verb, "set"):
        _link_set(request)
    elif is_verb(verb, "add"):
        _link_add(request)
    elif is_verb(verb, "delete"):
        words = [word for word in request.words if word != "dev"]
        if not words:
            raise CommandError('Not enough information: "dev" argument is required.')
        request.ns.link_del(words[0])
    else:
        raise unknown_verb(request, "link")


def _link_set(request: Request) -> None:
    words, ns = list(request.words), request.ns
    if words[:1] == ["dev"]:
        words.pop(0)
    if not words:
        raise CommandError('Not enough information: "dev" argument is required.')
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
        value = next_word(words, word)
        match word:
            case "mtu":
                ns.link_set(name, mtu=parse_number(value, "mtu"))
            case "address":
                ns.link_set(name, mac=parse_hardware(value))
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
                ns.link_set(name, txqlen=parse_number(value, "txqueuelen"))
            case "type" | "arp" | "multicast" | "promisc":
                continue
            case _:
                raise CommandError(f'Error: either "dev" is duplicate, or "{word}" is a garbage.')


def _link_add(request: Request) -> None:
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
            attrs["peer"] = next_word(words, "peer")
            continue
        if word not in _LINK_WORDS:
            if name:
                raise CommandError(f'Error: either "dev" is duplicate, or "{word}" is a garbage.')
            name = word
            continue
        value = next_word(words, word)
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
                mac = parse_hardware(value)
            case "mtu":
                mtu = parse_number(value, "mtu")
            case "id":
                attrs["vni"] = parse_number(value, "id")
            case "local" | "remote":
                attrs[word] = parse_ip(value)
            case "dstport":
                attrs["port"] = parse_number(value, "dstport")
            case "srcport":
                attrs["srcport"] = (
                    parse_number(value, word),
                    parse_number(next_word(words, word), word),
                )
            case "netns":
                attrs["peer_ns"] = value
            case "ageing":
                attrs["ageing_s"] = parse_number(value, "ageing")
            case "ttl":
                attrs["ttl"] = 0 if value in ("auto", "inherit") else parse_number(value, "ttl")
    if not kind:
        raise CommandError('Not enough information: "type" argument is required')
    if not name:
        raise CommandError('Not enough information: "dev" argument is required.')
    request.ns.link_add(name, kind, mac=mac, mtu=mtu, **attrs)


# ip address


def address(request: Request) -> None:
    """show, add, delete, flush."""
    verb = request.verb
    if is_verb(verb, "show", "list", "lst"):
        dev, rest = selected(request)
        if not dev and rest and rest[0] not in ("up", "type", "scope", "to", "master"):
            dev = rest[0]
        if dev:
            need_device(request.ns, dev)
        request.ctx.out(_addresses(request, dev))
    elif is_verb(verb, "add", "replace", "change"):
        _address_change(request, remove=False)
    elif is_verb(verb, "delete"):
        _address_change(request, remove=True)
    elif is_verb(verb, "flush"):
        dev, rest = selected(request)
        dev = dev or (rest[0] if rest else "")
        if not dev:
            raise CommandError("Flush requires arguments.")
        for each in [a for a in request.ns.addrs() if a.dev == need_device(request.ns, dev)]:
            request.ns.addr_del(dev, each.ip, each.length)
    else:
        raise unknown_verb(request, "address")


def _addresses(request: Request, dev: str) -> str:
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
        style=style_of(request.ctx),
        statistics=options.statistics,
        inet_only=options.family == "inet",
    )


def _address_change(request: Request, *, remove: bool) -> None:
    words = list(request.words)
    dev = text = ""
    scope = "global"
    broadcast: int | None = None
    plus = False
    while words:
        word = words.pop(0)
        match word:
            case "dev":
                dev = next_word(words, word)
            case "scope":
                scope = next_word(words, word)
            case "brd" | "broadcast":
                value = next_word(words, word)
                plus = value == "+"
                broadcast = None if plus else parse_ip(value)
            case "noprefixroute" | "label" | "local":
                if word == "local":
                    text = next_word(words, word)
            case _:
                text = word
    if not dev:
        raise CommandError('Not enough information: "dev" argument is required.')
    if not text:
        raise CommandError("RTNETLINK answers: Invalid argument", 2)
    ip_text, _, length_text = text.partition("/")
    try:
        address, length = parse_ip(ip_text), whole_number(length_text or "32")
    except UsageError:
        length = None
    if length is None or length > 32:
        raise CommandError(f'Error: any valid prefix is expected rather than "{text}".', 1)
    if plus:
        broadcast = Prefix.of(address, length).broadcast
    if remove:
        request.ns.addr_del(dev, address, length)
    else:
        request.ns.addr_add(dev, address, length, scope=scope, broadcast=broadcast)
