"""``calicoctl node status`` from what BIRD's control socket answers (pure).

Source: projectcalico/calico calicoctl/calicoctl/commands/node/status.go.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agents.calico.ctl.tables import box
from emulator.errors import PodwireError

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION: Final = "show protocols"
# BIRD's answer ends with this line; its blank belongs to it.
END: Final = "0000 "
_HEADINGS: Final = ("Peer address", "Peer type", "State", "Since", "Info")
_PEER: Final = re.compile(r"(Global|Node|Mesh)_(.+)")
_TYPES: Final = {"Global": "global", "Node": "node specific", "Mesh": "node-to-node mesh"}
_EXPECTED: Final = ["name", "proto", "table", "state", "since", "info"]


def peers_of(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows of the table, in BIRD's order: address, type, state, since, info.

    ``lines`` is the answer to ``QUESTION`` without its end.  PodwireError for another dialect.
    """
    rows: list[tuple[str, ...]] = []
    for line in lines:
        code, text = line[:4], line[5:] if line[:1].isdigit() else line[1:]
        if code == "0001":
            continue
        words = text.split()
        if code == "2002":
            if words != _EXPECTED:
                raise PodwireError("unknown BIRD table output format")
            continue
        if len(words) < 5 or words[1] != "BGP":
            continue
        peer = _PEER.fullmatch(words[0])
        if peer is not None:
            kind, address = peer.groups()
            address = address.partition("_port_")[0].replace("_", ".")
            rows.append((address, _TYPES[kind], words[3], words[4], " ".join(words[5:])))
    return rows


def render(rows: Sequence[Sequence[str]] | None) -> str:
    """What ``node status`` prints; None: BIRD does not run."""
    out = "Calico process is running.\n"
    if rows is None:
        out += "\nINFO: BIRDv4 process: 'bird' is not running.\n"
    else:
        out += "\nIPv4 BGP status\n"
        out += box(_HEADINGS, rows) if rows else "No IPv4 peers found.\n"
    return out + "\nIPv6 BGP status\nNo IPv6 peers found.\n\n"
