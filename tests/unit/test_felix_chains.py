"""Chains, names and hashes are felix's own: those of published dumps of real nodes."""

from __future__ import annotations

from agents.calico.felix import names
from agents.calico.felix.chains import dispatch, mangle_table, raw_table
from agents.calico.felix.compute import compute
from agents.calico.felix.model import (
    Endpoint,
    Host,
    NodeInfo,
    Policy,
    PolicyRule,
    Pool,
    Profile,
    Settings,
    Side,
    State,
)
from agents.calico.felix.policy_rules import SetsWanted, render_rules, split_ports
from agents.calico.felix.rules import Chain
from agents.calico.felix.tables import appended_lines
from agents.calico.selector import parse_selector
from emulator.addr import Prefix, parse_ip

ALLOW_ALL = (PolicyRule("Allow"),)
KNS = Profile("kns.default", ALLOW_ALL, ALLOW_ALL)


def endpoint(interface: str, profiles: tuple[str, ...] = ("kns.default",)) -> Endpoint:
    return Endpoint(
        f"kube--1-k8s-{interface}-eth0",
        "default",
        "kube-1",
        interface,
        (parse_ip("192.168.126.80"),),
        {"app": "nginx", "projectcalico.org/namespace": "default"},
        profiles,
        workload=interface,
    )


def state(**more) -> State:
    base = {
        "host": Host(addresses=(parse_ip("10.10.95.205"),)),
        "endpoints": (endpoint("cali2d894f7a3f6"),),
        "profiles": (KNS,),
        "pools": (Pool(Prefix.parse("192.168.0.0/16"), ipip="Always", nat_outgoing=True),),
        "nodes": (
            NodeInfo(
                "kube-1",
                parse_ip("10.10.95.205"),
                Prefix.parse("10.10.80.0/20"),
                parse_ip("192.168.126.64"),
            ),
            NodeInfo("kube-0", parse_ip("10.10.68.222"), Prefix.parse("10.10.64.0/20")),
        ),
    }
    return State("kube-1", **{**base, **more})


def hashes(table: str, chain: str, wanted: State | None = None) -> list[str]:
    rules = compute(wanted or state()).tables[table]
    return next(each for each in rules.chains if each.name == chain).hashes()


def test_the_fixed_filter_chains_are_those_of_a_real_node() -> None:
    assert hashes("filter", "cali-FORWARD") == [
        "vjrMJCRpqwy5oRoX", "A_sPAO0mcxbT9mOV", "8ZoYfO5HKXWbB3pk",
        "jdEuaPBe14V2hutn", "12bc6HljsMKsmfr-", "NOSxoaGx8OIstr1z",
    ]  # fmt: skip
    assert hashes("filter", "cali-INPUT") == [
        "PajejrV4aFdkZojI", "_wjq-Yrma8Ly1Svo", "8TZGxLWh_Eiz66wc", "6McIeIDvPdL6PE1T",
        "YGPbrUms7NId8xVa", "2gmY7Bg2i0i84Wk_", "q-Vz2ZT9iGE331LL",
    ]  # fmt: skip
    assert hashes("filter", "cali-OUTPUT") == [
        "Mq1_rAdXXH3YkrzW", "69FkRTJDvD5Vu6Vl", "AnEsmO6bDZbQntWW",
        "9e9Uf3GU5tX--Lxy", "0f3LDz_VKuHFaA2K", "OgU2f8BVEAZ_fwkq",
    ]  # fmt: skip
    assert hashes("filter", "cali-wl-to-host") == ["Ee9Sbo10IpVujdIY", "nSZbcOoG1xPONxb8"]


def test_the_jumps_in_built_in_chains_are_those_of_a_real_node() -> None:
    rules = compute(state()).tables
    first = {
        (table, chain.name): chain.hashes()
        for table, each in rules.items()
        for chain in each.inserts
    }
    assert first["filter", "INPUT"] == ["Cz_u1IQiXIMmKD4c"]
    assert first["filter", "FORWARD"] == ["wUHhoiAYhphO9Mso"]
    assert first["filter", "OUTPUT"] == ["tVnHkvAo15HuiPy0"]
    assert first["nat", "PREROUTING"] == ["6gwbT8clXdHdC1b1"]
    assert first["nat", "POSTROUTING"] == ["O3lYWMrLQYEMJtB5"]
    (appended,) = rules["filter"].appends
    assert appended_lines(appended)[1] == ["S93hcgKJrXEqnTfs", "mp77cMpurHhyjLrM"]


def test_the_nat_chains_are_those_of_a_real_node() -> None:
    plain = state(settings=Settings(random_fully=False))
    assert hashes("nat", "cali-nat-outgoing", plain) == ["Dw4T8UWPnCLxRJiI"]
    assert hashes("nat", "cali-POSTROUTING", plain) == [
        "Z-c7XtVd2Bq7s_hA", "nYKhEzDlr11Jccal", "JHlpT-eSqR1TvyYm"
    ]  # fmt: skip
    assert hashes("nat", "cali-nat-outgoing") == ["flqWnvo8yq4ULQLa"]
    assert hashes("nat", "cali-POSTROUTING")[2] == "SXWvdsbh4Mw7wOln"
    assert hashes("nat", "cali-PREROUTING") == ["r6XmIziWUJsdOK6Z"]
    assert hashes("nat", "cali-OUTPUT") == ["GBTAv2p5CwevEyJm"]


def test_raw_and_mangle_are_those_of_a_real_node() -> None:
    raw = {chain.name: chain.hashes() for chain in raw_table().chains}
    assert raw["cali-PREROUTING"][:2] == ["XFX5xbM8B9qR10JG", "EWMPb0zVROM-woQp"]
    mangle = {chain.name: chain.hashes() for chain in mangle_table().chains}
    assert mangle["cali-PREROUTING"][0] == "6BJqBjBC7crtA-7-"
    assert mangle["cali-PREROUTING"][2] == "wNH7KsA3ILKJBsY9"


def test_a_workloads_chain_is_that_of_a_real_node() -> None:
    assert hashes("filter", "cali-tw-cali2d894f7a3f6") == [
        "AENQf8Ocu8G49P3X", "Va3eqbONsqHFG1Pn", "iBEcux_b5bXNa6_K",
        "UGkgMolGfsQqiCjy", "ldeYBEyoZagLJ67t", "rQA6oeObU0tzP-0_",
    ]  # fmt: skip
    assert hashes("filter", "cali-pri-kns.default") == ["7Fnh7Pv3_98FtLW7", "ZbV6bJXWSRefjK0u"]
    other = endpoint("cali27d5a8fe8ae", ("kns.kube-system", "ksa.kube-system.node"))
    chain = hashes("filter", "cali-fw-cali27d5a8fe8ae", state(endpoints=(other,)))
    assert chain[:7] == [
        "w6lmsvcjCrMGZ-WS", "aapWQyyOnyQggC_3", "rmmQDw0oFZJPim23", "dqNYevjZ6PmGydIg",
        "pMKcmPaVYvOJmErj", "JV3Hc69opbne2PyH", "PV_Tj1hxltRhx5CY",
    ]  # fmt: skip


def test_devices_are_dispatched_by_a_tree() -> None:
    chains = dispatch(
        names.FROM_WORKLOAD,
        ["cali9819c942018", "cali2aef8851418", "cali27d5a8fe8ae"],
        lambda dev: f"--in-interface {dev}",
        names.FROM_ENDPOINT,
    )
    assert [chain.name for chain in chains] == [
        "cali-from-wl-dispatch-2", "cali-from-wl-dispatch"
    ]  # fmt: skip
    assert chains[0].hashes() == ["NE5q7vY2OTZu5i8T", "Qg36YK9Lij1X-oHQ", "m9pbfem2W7SQRLQk"]
    assert [rule.action for rule in chains[1].rules] == [
        "--goto cali-from-wl-dispatch-2", "--goto cali-fw-cali9819c942018", "--jump DROP"
    ]  # fmt: skip
    assert dispatch("x", [], str, "y")[-1].rules[0].comment == "Unknown interface"


def test_nobody_to_dispatch_to_ends_as_on_a_real_node() -> None:
    empty = state(endpoints=())
    assert hashes("filter", "cali-from-wl-dispatch", empty) == ["zTj6P0TIgYvgz-md"]
    assert hashes("filter", "cali-to-wl-dispatch", empty) == ["7KNphB1nNHw80nIO"]


def test_long_names_are_hashed_and_short_ones_kept() -> None:
    assert names.limited("cali-pri-", "kns.default") == "cali-pri-kns.default"
    assert names.limited("cali-pri-", "ksa.kube-system.coredns") == "cali-pri-_u2Tn2rSoAPffvE7JO6"
    assert (
        names.limited("cali-pi-", "default/knp.default.deny-all") == "cali-pi-_-Wl5cZBkMaJW52alC41"
    )
    assert len(names.limited("cali-pi-", "x" * 200)) == names.MAX_CHAIN_NAME
    assert names.set_name("s:" + "x" * 50) == "cali40s:" + "x" * 23


def test_a_policy_is_asked_before_profiles_and_refuses_what_it_does_not_pass() -> None:
    web = (PolicyRule("Allow", "tcp", destination=Side(ports=("80",))),)
    selector = parse_selector("app == 'nginx'")
    policy = Policy("default/knp.default.web", selector, 1000.0, ("Ingress",), web)
    desired = compute(state(policies=(policy,)))
    chains = {chain.name: chain for chain in desired.tables["filter"].chains}
    rules = chains["cali-tw-cali2d894f7a3f6"].rules
    assert [(rule.comment or rule.action) for rule in rules[3:8]] == [
        "Start of policies",
        "--jump " + names.limited("cali-pi-", policy.name),
        "Return if policy accepted",
        "Drop if no policies passed packet",
        "--jump cali-pri-kns.default",
    ]
    # Outbound it selects nothing.
    outbound = chains["cali-fw-cali2d894f7a3f6"].rules
    assert all(rule.comment != "Start of policies" for rule in outbound)
    assert desired.notes["filter cali-tw-cali2d894f7a3f6"] == (
        "workload default/cali2d894f7a3f6, ingress; policies default/knp.default.web"
    )


def render(rule: PolicyRule) -> list[str]:
    rules = render_rules((rule,), SetsWanted(), "calico-packet")
    return [each.rendered("") for each in rules]


def test_one_network_and_port_are_one_rule() -> None:
    rule = PolicyRule("Allow", "tcp", source=Side(nets=("10.0.0.0/8",)),
                      destination=Side(ports=("80", "8000:8080")))  # fmt: skip
    assert render(rule) == [
        "-p tcp --source 10.0.0.0/8 -m multiport --destination-ports 80,8000:8080 "
        "--jump MARK --set-mark 0x10000/0x10000",
        "-m mark --mark 0x10000/0x10000 --jump RETURN",
    ]


def test_lists_that_do_not_fit_become_blocks() -> None:
    rule = PolicyRule(
        "Deny", "udp",
        source=Side(nets=("10.0.0.0/8", "11.0.0.0/8"), not_nets=("10.1.0.0/16",)),
        destination=Side(nets=("12.0.0.0/8", "13.0.0.0/8")),
    )  # fmt: skip
    assert render(rule) == [
        "--jump MARK --set-mark 0x0/0xc0000",
        "--source 10.0.0.0/8 --jump MARK --set-mark 0x40000/0x40000",
        "--source 11.0.0.0/8 --jump MARK --set-mark 0x40000/0x40000",
        "--destination 12.0.0.0/8 --jump MARK --set-mark 0x80000/0x80000",
        "--destination 13.0.0.0/8 --jump MARK --set-mark 0x80000/0x80000",
        "-m mark --mark 0/0x80000 --jump MARK --set-mark 0/0x40000",
        "-p udp ! --source 10.1.0.0/16 -m mark --mark 0x40000/0x40000 --jump DROP",
    ]


def test_a_packet_must_pass_every_one_of_three_lists() -> None:
    rule = PolicyRule(
        "Allow", "tcp",
        source=Side(nets=("10.0.0.0/8", "11.0.0.0/8")),
        destination=Side(nets=("12.0.0.0/8", "13.0.0.0/8"), ports=("80", "http")),
    )  # fmt: skip
    lines = render(rule)
    fails = "-m mark --mark 0/0x80000 --jump MARK --set-mark 0/0x40000"
    forgets = "--jump MARK --set-mark 0/0x80000"
    # The last list does not inherit what the one before found.
    assert [line for line in lines if line in (fails, forgets)] == [fails, forgets, fails]
    assert lines[lines.index(forgets) + 1].startswith("--destination 12.0.0.0/8 ")


def test_networks_that_must_not_match_become_a_block_when_there_are_several() -> None:
    rule = PolicyRule("Deny", source=Side(not_nets=("10.1.0.0/16", "10.2.0.0/16")))
    assert render(rule) == [
        "--jump MARK --set-mark 0x40000/0xc0000",
        "--source 10.1.0.0/16 --jump MARK --set-mark 0/0x40000",
        "--source 10.2.0.0/16 --jump MARK --set-mark 0/0x40000",
        "-m mark --mark 0x40000/0x40000 --jump DROP",
    ]


def test_a_selector_is_asked_beside_numbers_and_within_sets_of_named_ports() -> None:
    web = parse_selector("app == 'web'")
    name = names.set_name(web.unique_id)

    def asked(*ports: str) -> bool:
        rule = PolicyRule("Deny", "tcp", destination=Side(selector=web, ports=ports))
        return f"--match-set {name} dst" in " ".join(render(rule))

    assert [asked(), asked("80"), asked("80", "http"), asked("http")] == [True, True, True, False]


def test_named_ports_know_protocols_by_name_and_number() -> None:
    def wanted(protocol: str) -> list[str]:
        sets = SetsWanted()
        rule = PolicyRule("Allow", protocol, destination=Side(ports=("dns",)))
        render_rules((rule,), sets, "")
        return [proto for _, proto, _ in sets.ports.values()]

    assert [wanted(each) for each in ("6", "17", "udp", "sctp")] == [
        ["tcp"], ["udp"], ["udp"], ["sctp"]
    ]  # fmt: skip


def test_more_ports_than_multiport_takes_are_split() -> None:
    ports = [str(port) for port in range(1, 15)] + ["20:30", "40"]
    assert split_ports(ports) == ["1,2,3,4,5,6,7,8,9,10,11,12,13,14", "20:30,40"]


def test_actions_that_do_not_end_leave_a_mark_or_a_line() -> None:
    assert render(PolicyRule("Pass"))[0] == "--jump MARK --set-mark 0x20000/0x20000"
    assert render(PolicyRule("Log", "icmp", icmp=(8, 0))) == [
        '-p icmp -m icmp --icmp-type 8/0 --jump LOG --log-prefix "calico-packet: " --log-level 5'
    ]
    assert render(PolicyRule("Deny", "icmp", not_icmp=(8, None))) == [
        "-p icmp -m icmp ! --icmp-type 8 --jump DROP"
    ]


def test_a_rule_for_ipv6_networks_alone_matches_no_packet() -> None:
    assert render(PolicyRule("Allow", source=Side(nets=("feed::/16",)))) == []
    # felix has no rule here either: what must not be IPv6 alone says nothing of IPv4.
    assert render(PolicyRule("Allow", source=Side(not_nets=("feed::/16",)))) == []


def test_equal_rules_at_another_place_have_other_hashes() -> None:
    rule = raw_table().chains[0].rules[0]
    one, other = Chain("a", (rule, rule)).hashes()
    assert one != other
    assert Chain("b", (rule,)).hashes()[0] != one
