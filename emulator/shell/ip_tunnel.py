"""``ip tunnel``: IP-in-IP devices under their older command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.errors import UsageError
from emulator.netstack.show.link import render_ip_tunnel
from emulator.shell.ip_words import (
    CommandError,
    is_verb,
    next_word,
    parse_address,
    parse_number,
    style_of,
    unknown_verb,
)

if TYPE_CHECKING:
    from emulator.shell.ip_words import Request


def tunnel(request: Request) -> None:
    """show, add, delete."""
    verb, ns = request.verb, request.ns
    name, attrs = _parse(request)
    if is_verb(verb, "show", "list", "lst"):
        links = [link for link in ns.links() if not name or link.name == name]
        if name and not links:
            raise UsageError(f'Cannot find device "{name}"')
        request.ctx.out(render_ip_tunnel(links, style=style_of(request.ctx)))
    elif is_verb(verb, "add"):
        if not name:
            raise CommandError("cannot determine tunnel mode (ipip, gre, vti or sit)", 1)
        ns.link_add(name, "ipip", **attrs)  # type: ignore[arg-type]  # all of them numbers
    elif is_verb(verb, "delete"):
        if ns.link(name).kind != "ipip":
            raise UsageError(f'delete tunnel "{name}" failed: Operation not supported')
        ns.link_del(name)
    else:
        raise unknown_verb(request, "tunnel")


def _parse(request: Request) -> tuple[str, dict[str, int]]:
    words, name = list(request.words), ""
    attrs: dict[str, int] = {}
    while words:
        word = words.pop(0)
        match word:
            case "name":
                name = next_word(words, word)
            case "mode":
                mode = next_word(words, word)
                if mode not in ("ipip", "ip/ip", "any", "any/ip"):
                    raise CommandError(f'Unknown tunnel mode "{mode}"')
            case "local" | "remote":
                value = next_word(words, word)
                attrs[word] = 0 if value == "any" else parse_address(value)
            case "ttl" | "hoplimit":
                value = next_word(words, word)
                attrs["ttl"] = 0 if value == "inherit" else parse_number(value, "ttl")
            case "dev":
                # The far end's route decides; a device is only checked for.
                request.ns.link(next_word(words, word))
            case "nopmtudisc" | "pmtudisc":
                continue
            case _:
                if name:
                    raise CommandError(
                        f'Error: either "name" is duplicate, or "{word}" is a garbage.'
                    )
                name = word
    return name, attrs
