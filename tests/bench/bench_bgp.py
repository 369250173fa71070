"""Our BGP speaker beside real ones: ``python -m tests.bench.bench_bgp [prefixes] [--rounds N]``.

A sender (AS 65001) announces prefixes to the daemon (AS 65000), which selects and re-advertises
them to a receiver (AS 65002); the time is from the first octet sent to the last prefix received.
All daemons found are measured in turns, figures are medians and ratios to BIRD 2.  ``packed`` is
one set of attributes, ``spread`` four prefixes a message with attributes of their own.

Figures to reach for a million packed prefixes: faster than FRR, aim three times BIRD 2's time; at
most 450 MB, aim 300.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests import bgp_peers
from tests.bench import bgp_traffic as traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MILLION = 1_000_000
DAEMON = "127.0.88.1"
SENDER = "127.0.88.2"
RECEIVER = "127.0.88.3"
PORT = 11790
NEXT_HOP = "10.10.64.2"

# What runs as our daemon: argv is address and port.
OURS = """
import asyncio, gc, logging, random, sys
from agents.bird.config import BgpConfig, ChannelConfig, SpeakerConfig
from agents.bird.daemon import BirdDaemon
from agents.bird.filters import ACCEPT_ALL
from agents.bird.speaker import Speaker
from emulator.addr import parse_ip

def peer(name, ip, asn):
    return BgpConfig(name, parse_ip(ip), asn, 65000, passive=True,
                     ipv4=ChannelConfig(export_filter=ACCEPT_ALL))

async def main():
    config = SpeakerConfig(parse_ip("10.10.64.1"), (
        peer("sender", "{sender}", 65001), peer("receiver", "{receiver}", 65002)))
    speaker = Speaker(config, random.Random(1), now=asyncio.get_running_loop().time())
    log = logging.getLogger("bird")
    await BirdDaemon(speaker, log, listen=(sys.argv[1], int(sys.argv[2]))).run()

gc.freeze()
asyncio.run(main())
""".replace("{sender}", SENDER).replace("{receiver}", RECEIVER)


class Result(NamedTuple):
    """One daemon's run: seconds, CPU seconds, peak memory in MB, seconds to withdraw all."""

    seconds: float
    cpu_s: float
    peak_mb: float
    withdraw_s: float


@contextlib.contextmanager
def ours(directory: Path) -> Iterator[int]:
    """Podwire's speaker."""
    script = directory / "ours.py"
    script.write_text(OURS)
    program = bgp_peers.Program(sys.executable, {**_env(), "PYTHONPATH": str(Path.cwd())})
    with bgp_peers.process(
        program, [str(script), DAEMON, str(PORT)], directory / "ours.log"
    ) as pid:
        yield pid


def _env() -> dict[str, str]:
    return dict(os.environ)


BIRD2_CONFIG = f"""
log stderr {{ warning, error, fatal }};
router id 10.10.64.1;
protocol device {{ scan time 60; }}
protocol static {{ ipv4; route 10.10.64.0/24 via "lo"; }}
template bgp t {{ local {DAEMON} port {PORT} as 65000; multihop; strict bind on; passive on;
  ipv4 {{ import all; export where net != 10.10.64.0/24; next hop address 10.10.64.1; }}; }}
protocol bgp snd from t {{ neighbor {SENDER} as 65001; }}
protocol bgp rcv from t {{ neighbor {RECEIVER} as 65002; }}
"""

BIRD1_CONFIG = f"""
log stderr {{ warning, error, fatal }};
router id 10.10.64.1;
listen bgp address {DAEMON} port {PORT};
protocol device {{ scan time 60; }}
protocol static {{ route 10.10.64.0/24 via "lo"; }}
template bgp t {{ local as 65000; multihop; passive on; source address {DAEMON};
  import all; export where net != 10.10.64.0/24; }}
protocol bgp snd from t {{ neighbor {SENDER} as 65001; }}
protocol bgp rcv from t {{ neighbor {RECEIVER} as 65002; }}
"""

FRR_CONFIG = f"""
router bgp 65000
 bgp router-id 10.10.64.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor {SENDER} remote-as 65001
 neighbor {SENDER} passive
 neighbor {SENDER} disable-connected-check
 neighbor {RECEIVER} remote-as 65002
 neighbor {RECEIVER} passive
 neighbor {RECEIVER} disable-connected-check
 neighbor {RECEIVER} advertisement-interval 0
"""

GOBGP_CONFIG = f"""
[global.config]
  as = 65000
  router-id = "10.10.64.1"
  port = {PORT}
  local-address-list = ["{DAEMON}"]
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{SENDER}"
    peer-as = 65001
  [neighbors.transport.config]
    local-address = "{DAEMON}"
    passive-mode = true
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{RECEIVER}"
    peer-as = 65002
  [neighbors.transport.config]
    local-address = "{DAEMON}"
    passive-mode = true
"""


@contextlib.contextmanager
def bird2(directory: Path) -> Iterator[int]:
    """BIRD 2."""
    program = bgp_peers.bird2()
    assert program is not None
    (directory / "b.conf").write_text(BIRD2_CONFIG)
    arguments = ["-f", "-c", "b.conf", "-s", "b.ctl", "-P", "b.pid"]
    with bgp_peers.process(program, arguments, directory / "b.log") as pid:
        yield pid


@contextlib.contextmanager
def bird1(directory: Path) -> Iterator[int]:
    """BIRD 1.6."""
    program = bgp_peers.bird1()
    assert program is not None
    (directory / "b.conf").write_text(BIRD1_CONFIG)
    arguments = ["-f", "-c", "b.conf", "-s", "b.ctl", "-P", "b.pid"]
    with bgp_peers.process(program, arguments, directory / "b.log") as pid:
        yield pid


@contextlib.contextmanager
def frr(directory: Path) -> Iterator[int]:
    """FRR's bgpd alone."""
    program = bgp_peers.frr_bgpd()
    assert program is not None
    (directory / "bgpd.conf").write_text(FRR_CONFIG)
    here = str(directory)
    arguments = ["-f", f"{here}/bgpd.conf", "-Z", "-S", "-l", DAEMON, "-p", str(PORT)]
    arguments += ["-A", DAEMON, "-P", "0", "-i", f"{here}/bgpd.pid", "--vty_socket", here]
    with bgp_peers.process(program, arguments, directory / "frr.log") as pid:
        yield pid


@contextlib.contextmanager
def gobgp(directory: Path) -> Iterator[int]:
    """GoBGP."""
    program = bgp_peers.gobgpd()
    assert program is not None
    (directory / "g.toml").write_text(GOBGP_CONFIG)
    arguments = ["-f", "g.toml", f"--api-hosts={DAEMON}:50051", "--pprof-disable", "-p"]
    with bgp_peers.process(program, arguments, directory / "g.log") as pid:
        yield pid


@contextlib.contextmanager
def exabgp(directory: Path) -> Iterator[int]:
    """ExaBGP without API: it receives and keeps nothing."""
    program = bgp_peers.exabgp()
    assert program is not None
    (directory / "exa.conf").write_text(
        f"neighbor {SENDER} {{ router-id 10.10.64.1; local-address {DAEMON}; local-as 65000; "
        f"peer-as 65001; passive true; listen {PORT}; hold-time 240; family {{ ipv4 unicast; }} }}"
    )
    settings = {
        **bgp_peers.exabgp_settings(DAEMON),
        "exabgp.tcp.port": str(PORT),
        "exabgp.log.level": "CRIT",
    }
    with bgp_peers.process(
        program, ["-m", "exabgp", "exa.conf"], directory / "exa.log", **settings
    ) as pid:
        yield pid


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _peak_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def receive(daemon: Callable[[Path], contextlib.AbstractContextManager[int]], data: bytes) -> float:
    """CPU seconds a daemon needs to receive everything: until it uses none for a second."""
    with tempfile.TemporaryDirectory() as name, daemon(Path(name)) as pid:
        print(f"{daemon.__name__} receives", file=sys.stderr)
        sender = traffic.connect(SENDER, (DAEMON, PORT), 65001, "10.10.64.2")
        try:
            time.sleep(0.5)
            before = used = _cpu_s(pid)
            sender.sock.settimeout(300)
            sender.sock.sendall(data)
            quiet_at = time.monotonic() + 1
            while time.monotonic() < quiet_at:
                time.sleep(0.1)
                now = _cpu_s(pid)
                if now - used > 0.02:
                    used, quiet_at = now, time.monotonic() + 1
            return _cpu_s(pid) - before
        finally:
            sender.close()


def measure(
    daemon: Callable[[Path], contextlib.AbstractContextManager[int]],
    data: bytes,
    gone: bytes,
    n: int,
) -> Result:
    """One run of one daemon."""
    with tempfile.TemporaryDirectory() as name, daemon(Path(name)) as pid:
        target = (DAEMON, PORT)
        print(daemon.__name__, file=sys.stderr)
        receiver = traffic.connect(RECEIVER, target, 65002, "10.10.64.3")
        sender = traffic.connect(SENDER, target, 65001, "10.10.64.2")
        try:
            time.sleep(0.5)
            before = _cpu_s(pid)
            seconds = traffic.pump(sender, receiver, data, "announced", n)
            cpu = _cpu_s(pid) - before
            peak = _peak_mb(pid)
            withdraw_s = traffic.pump(sender, receiver, gone, "withdrawn", n)
        finally:
            sender.close()
            receiver.close()
        return Result(seconds, cpu, peak, withdraw_s)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prefixes", nargs="?", type=int, default=MILLION)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", choices=("packed", "spread"), default="packed")
    parser.add_argument("--slow", action="store_true", help="GoBGP and ExaBGP too: minutes")
    options = parser.parse_args(arguments if arguments is not None else [])
    n = options.prefixes
    keys = traffic.prefixes(n)
    data = getattr(traffic, options.shape)(keys, 65001, NEXT_HOP)
    gone = traffic.withdraw(keys)
    daemons: dict[str, Callable[[Path], contextlib.AbstractContextManager[int]]] = {"podwire": ours}
    if bgp_peers.bird2() is not None:
        daemons["bird 2"] = bird2
    if bgp_peers.bird1() is not None:
        daemons["bird 1.6"] = bird1
    if bgp_peers.frr_bgpd() is not None:
        daemons["frr"] = frr
    if options.slow and bgp_peers.gobgpd() is not None:
        daemons["gobgp"] = gobgp
    results: dict[str, list[Result]] = {name: [] for name in daemons}
    for _ in range(options.rounds):
        for name, daemon in daemons.items():
            results[name].append(measure(daemon, data, gone, n))
    print(f"{n:,} prefixes, {options.shape}, {options.rounds} rounds")
    print(
        f"{'':10} {'forward s':>10} {'x bird 2':>9} {'cpu s':>7} {'peak MB':>8} {'withdraw s':>11}"
    )
    base = statistics.median(r.seconds for r in results["bird 2"]) if "bird 2" in results else None
    for name, runs in results.items():
        seconds = statistics.median(r.seconds for r in runs)
        ratio = f"{seconds / base:9.2f}" if base else f"{'-':>9}"
        cpu = statistics.median(r.cpu_s for r in runs)
        peak = max(r.peak_mb for r in runs)
        withdraw_s = statistics.median(r.withdraw_s for r in runs)
        print(f"{name:10} {seconds:10.3f} {ratio} {cpu:7.2f} {peak:8.0f} {withdraw_s:11.3f}")
    if options.slow and bgp_peers.exabgp() is not None:
        mine = statistics.median(receive(ours, data) for _ in range(options.rounds))
        theirs = statistics.median(receive(exabgp, data) for _ in range(options.rounds))
        print(f"received alone, cpu s: podwire {mine:.2f}, exabgp {theirs:.2f}", end="")
        print(f", {theirs / mine:.1f} times" if mine else "")


if __name__ == "__main__":
    main(sys.argv[1:])
