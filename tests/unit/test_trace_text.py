"""Traces as text: what a reader needs, in the order it happened."""

from __future__ import annotations

from typing import Any

from emulator.cli.trace_text import last_seen, render

SYN = "IP 10.2.1.5.40000 > 10.3.0.1.80: Flags [S], seq 1, win 65535, options [mss 1410], length 0"
SENT = SYN.replace("10.3.0.1.80", "10.2.7.3.80")


def step(
    stage: str, detail: str, packet: str = SYN, *, netns: str = "root", ttl: int = 64
) -> dict[str, Any]:
    return {
        "at": 0.0,
        "node": "node-0",
        "netns": netns,
        "stage": stage,
        "detail": detail,
        "packet": packet,
        "ttl": ttl,
    }


STEPS = [
    step("device", "made here", netns="cni-1"),
    step("device", "eth0 transmits", netns="cni-1"),
    step("hook", "conntrack NEW"),
    step(
        "hook",
        "nat KUBE-SERVICES rule 2: -A KUBE-SERVICES -d 10.3.0.1/32 -p tcp -m comment"
        ' --comment "default/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-A',
    ),
    step("hook", "nat KUBE-SVC-A rule 1: -A KUBE-SVC-A -j DNAT --to-destination 10.2.7.3:80"),
    step("nat", "PREROUTING DNAT 10.3.0.1:80 → 10.2.7.3:80", SENT),
    step("hook", "filter FORWARD rule 1: -A FORWARD -j KUBE-NOTHING", SENT, ttl=63),
    step("neigh", "10.2.7.0 dev flannel.1 lladdr 02:00:00:00:00:01 PERMANENT", SENT, ttl=63),
    step("device", "flannel.1 transmits", SENT, ttl=63),
]


def test_each_step_is_a_line_under_the_packet_it_happened_to() -> None:
    assert render(STEPS, {"cni-1": "web-1"}) == (
        "\n"
        "node-0, pod web-1\n"
        "      10.2.1.5.40000 > 10.3.0.1.80: Flags [S], ttl 64\n"
        "     device  made here\n"
        "     device  eth0 transmits\n"
        "\n"
        "node-0\n"
        "      10.2.1.5.40000 > 10.3.0.1.80: Flags [S], ttl 64\n"
        "  conntrack  NEW\n"
        "       rule  nat KUBE-SERVICES 2: -d 10.3.0.1/32 -p tcp --dport 80 -j KUBE-SVC-A"
        "  # default/web cluster IP\n"
        "       rule  nat KUBE-SVC-A 1: -j DNAT --to-destination 10.2.7.3:80\n"
        "        nat  PREROUTING DNAT 10.3.0.1:80 → 10.2.7.3:80\n"
        "      10.2.1.5.40000 > 10.2.7.3.80: Flags [S], ttl 64\n"
        "      10.2.1.5.40000 > 10.2.7.3.80: Flags [S], ttl 63\n"
        "      neigh  10.2.7.0 dev flannel.1 lladdr 02:00:00:00:00:01 PERMANENT\n"
        "     device  flannel.1 transmits\n"
    )


def test_verbose_leaves_nothing_out() -> None:
    text = render(STEPS, {}, verbose=True)
    assert "node-0, netns cni-1\n" in text
    assert "rule  filter FORWARD rule 1: -A FORWARD -j KUBE-NOTHING\n" in text
    assert "options [mss 1410], length 0, ttl 64\n" in text


def test_a_probe_sent_again_is_told_once() -> None:
    text = render([*STEPS, *STEPS], {})
    assert text.count("made here") == 1
    assert text.endswith("\nThe probe was sent 2 times; only the first is shown.\n")


def test_a_lost_probe_was_last_seen_on_its_way_to_a_neighbour() -> None:
    assert last_seen(STEPS, {}) == "last seen on node-0: flannel.1 transmits, to 10.2.7.0"
    assert last_seen(STEPS[:2], {"cni-1": "web-1"}) == (
        "last seen on node-0, pod web-1: eth0 transmits"
    )
    assert last_seen([], {}) == "nothing was seen of it"


def test_what_a_chain_speaks_for_is_said_once_and_hashes_are_left_out() -> None:
    chain = "cali-tw-cali0"
    note = "workload shop/web, ingress; policies shop/closed"
    hashed = '-m comment --comment "cali:MkEsEpbj_lv6z2C-"'
    said = '-m comment --comment "Drop if no policies passed packet"'
    first = f"filter {chain} rule 3 ({note}): -A {chain} {hashed} -j MARK --set-xmark 0x0/0x10000"
    last = f"filter {chain} rule 7 ({note}): -A {chain} {hashed} {said} -j DROP"
    steps = [
        {"at": 0.0, "node": "kube-0", "netns": "root", "stage": stage, "detail": detail,
         "packet": "192.168.0.3.1 > 192.168.0.2.80: Flags [S]", "ttl": 63}
        for stage, detail in (
            ("hook", first), ("hook", last), ("drop", f"netfilter_drop: {last}")
        )
    ]  # fmt: skip
    lines = [line.strip() for line in render(steps, {}).splitlines()]
    assert f"rule  filter {chain} 3: -j MARK --set-xmark 0x0/0x10000  # {note}" in lines
    assert f"rule  filter {chain} 7: -j DROP  # Drop if no policies passed packet" in lines
    assert "drop  netfilter_drop, by this rule" in lines
