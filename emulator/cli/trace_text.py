"""A trace as text: what happened to one probe, step by step, in the order it happened.

A heading for each node or pod, the packet whenever it looks different, and one line a step::

    node-0
          172.17.4.201.55194 > 10.3.0.1.80: Flags [S], ttl 64
       device  made here
         rule  nat KUBE-SERVICES 2: -d 10.3.0.1/32 -p tcp --dport 80 -j KUBE-SVC-…  # default/web
          nat  OUTPUT DNAT 10.3.0.1:80 → 10.2.7.3:80
          172.17.4.201.55194 > 10.2.7.3.80: Flags [S], ttl 64
        route  10.2.7.3: 10.2.7.0/24 via 10.2.7.0 dev flannel.1 onlink

Rules that only led into a chain where nothing matched are left out; a verbose trace has them, and
the packets with all that tcpdump would print.
"""

from __future__ import annotations

import itertools
import re
import shlex
from typing import TYPE_CHECKING, Any, Final

from emulator.netstack.netfilter.registry import STANDARD_VERDICTS, TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Step = Mapping[str, Any]

# Steps after which the packet is another one: they come before it, all others after it.
_CHANGES: Final = ("nat", "encap", "decap")
# The note is what the owner of the chain says of it.
_RULE: Final = re.compile(
    r"(?P<place>\S+ \S+) rule (?P<number>\d+)(?: \((?P<note>.*?)\))?: -A \S+ ?(?P<spec>.*)"
)
_COMMENT: Final = re.compile(r'-m comment --comment (?:"((?:[^"\\]|\\.)*)"|(\S+)) ?')
# felix's mark of its own rules: a hash that says nothing to a reader.
_HASH: Final = re.compile(r"cali:\S{16}")
# Said by -p already.
_IMPLIED: Final = ("-m tcp ", "-m udp ", "-m icmp ")
_CONNTRACK: Final = "conntrack "
_SENT: Final = "made here"


def render(steps: Sequence[Step], pods: Mapping[str, str], *, verbose: bool = False) -> str:
    """The text of ``steps``, oldest first; ``pods`` gives a namespace's pod by the netns name."""
    steps, again = _without_repetitions(steps)
    if not verbose:
        steps = _without_dead_ends(steps)
    lines: list[str] = []
    place, shown = ("", ""), ""
    previous: Step | None = None
    for step in steps:
        here = (step["node"], step["netns"])
        if here != place or _came_back(previous, step):
            lines += ["", heading(step, pods)]
            place, shown = here, ""
        packet = _packet_text(step, verbose=verbose)
        line = _line(step, previous, verbose=verbose)
        if step["stage"] in _CHANGES:
            lines += [line, f"      {packet}"]
        elif packet != shown:
            lines += [f"      {packet}", line]
        else:
            lines.append(line)
        shown, previous = packet, step
    if again:
        lines += ["", f"The probe was sent {again + 1} times; only the first is shown."]
    return "\n".join(lines) + "\n"


def _came_back(previous: Step | None, step: Step) -> bool:
    """True if the packet was where nobody traces, beyond the node's NIC."""
    return (
        previous is not None
        and previous["stage"] == step["stage"] == "device"
        and previous["detail"] == "eth0 transmits"
        and step["detail"] == "eth0 receives"
    )


def heading(step: Step, pods: Mapping[str, str]) -> str:
    """Where a step happened: ``node-0``, or ``node-0, pod web-7995b8d97d-5w2kh``."""
    netns = step["netns"]
    if netns == "root":
        return str(step["node"])
    if netns in pods:
        return f"{step['node']}, pod {pods[netns]}"
    return f"{step['node']}, netns {netns}"


def last_seen(steps: Sequence[Step], pods: Mapping[str, str]) -> str:
    """Where the trace of a probe that nobody answered ends, in one line."""
    steps, _ = _without_repetitions(steps)
    if not steps:
        return "nothing was seen of it"
    last = steps[-1]
    text = f"last seen on {heading(last, pods)}: {last['detail']}"
    before = steps[-2] if len(steps) > 1 else last
    if last["stage"] == "device" and before["stage"] == "neigh":
        text += f", to {before['detail'].split(' dev ')[0]}"
    return text


def _without_repetitions(steps: Sequence[Step]) -> tuple[list[Step], int]:
    """Cut what follows when the sender sends the same again; also how often it did."""
    if not steps:
        return [], 0
    first = steps[0]
    repeated = [
        number
        for number, step in enumerate(steps)
        if number
        and step["detail"] == _SENT
        and all(step[key] == first[key] for key in ("node", "netns", "packet"))
    ]
    return list(steps[: repeated[0]] if repeated else steps), len(repeated)


def _without_dead_ends(steps: Sequence[Step]) -> list[Step]:
    """Leave jumps out that led into a chain of which no rule matched."""
    kept: list[Step] = []
    for step in reversed(steps):
        rule = _RULE.match(step["detail"]) if step["stage"] == "hook" else None
        if rule is not None:
            chain = _jump(rule["spec"])
            if chain:
                table = rule["place"].split()[0]
                follower = kept[-1]["detail"] if kept else ""
                if not follower.startswith(f"{table} {chain} rule "):
                    continue
        kept.append(step)
    return kept[::-1]


def _jump(spec: str) -> str:
    """The user's chain a rule leads into, "" if its target is none."""
    words = shlex.split(spec)
    for flag, target in itertools.pairwise(words):
        if flag in ("-j", "-g") and target not in (*STANDARD_VERDICTS, *TARGETS):
            return target
    return ""


def _line(step: Step, previous: Step | None, *, verbose: bool) -> str:
    stage, detail = step["stage"], step["detail"]
    if stage == "hook":
        if detail.startswith(_CONNTRACK):
            stage, detail = "conntrack", detail.removeprefix(_CONNTRACK)
        else:
            stage = "rule"
            if not verbose and (rule := _RULE.match(detail)):
                before = _RULE.match(previous["detail"]) if previous is not None else None
                # Said once, at the first rule of the chain.
                news = before is None or before["place"] != rule["place"]
                note = rule["note"] or "" if news else ""
                short = _short_rule(rule["spec"], note)
                detail = f"{rule['place']} {rule['number']}: {short}"
    elif stage == "drop" and previous is not None and previous["stage"] == "hook" and not verbose:
        # The rule that dropped it is the line above.
        reason, _, text = detail.partition(": ")
        detail = f"{reason}, by this rule" if text.startswith(previous["detail"]) else detail
    return f"{stage:>11}  {detail}"


def _short_rule(spec: str, note: str) -> str:
    """A rule as iptables-save prints it, its comments and its chain's note at the end."""
    comments = [found[1] or found[2] for found in _COMMENT.finditer(spec)]
    spec = _COMMENT.sub("", spec)
    for words in _IMPLIED:
        spec = spec.replace(words, "")
    said = [note] if note else []
    said += [text for text in comments if not _HASH.fullmatch(text)]
    return spec.rstrip() + (f"  # {'; '.join(said)}" if said else "")


def _packet_text(step: Step, *, verbose: bool) -> str:
    """The packet as tcpdump prints it; without what only TCP itself cares about if not verbose."""
    text, ttl = step["packet"].removeprefix("IP "), f", ttl {step['ttl']}"
    if verbose:
        return f"{text}{ttl}"
    text = re.sub(r"(Flags \[[^]]*\]).*", r"\1", text)
    text = re.sub(r", length \d+$", "", text)
    return text.replace(", flags [I] (0x08), vni", " vni") + ttl
