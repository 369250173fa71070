"""Real BGP daemons for tests: where they are, how they are configured and run.

A daemon is looked for on PATH and in PODWIRE_TEST_BGP, a directory with Debian's packages unpacked
in ``bird2 bird gobgpd frr exabgp`` (``.ci/run`` makes it).  All run unprivileged on 127.0.0.0/8.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PORT = 1790
WAIT_S = 20.0
NO_BIRD2 = "no BIRD 2: install bird2 or set PODWIRE_TEST_BGP to unpacked packages"
NO_BIRD1 = "no BIRD 1.6: set PODWIRE_TEST_BGP to unpacked packages"
NO_EXABGP = "no ExaBGP: set PODWIRE_TEST_BGP to unpacked packages, with a Python it runs on"
NO_FRR = "no FRR bgpd: install frr or set PODWIRE_TEST_BGP to unpacked packages"
NO_GOBGP = "no GoBGP: install gobgpd or set PODWIRE_TEST_BGP to unpacked packages"

_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def _root() -> Path | None:
    given = os.environ.get("PODWIRE_TEST_BGP")
    path = Path(given) if given else Path.home() / ".cache/podwire-test-peers"
    return path if path.is_dir() else None


@dataclass(frozen=True)
class Program:
    """A binary and the environment it needs."""

    path: str
    env: dict[str, str]

    def run(self, *arguments: str) -> str:
        """Run to the end; its output."""
        done = subprocess.run(
            [self.path, *arguments], env=self.env, capture_output=True, text=True, timeout=WAIT_S
        )
        return done.stdout + done.stderr

    def works(self) -> bool:
        """False if it cannot even say its version here (a missing library)."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                [self.path, "--version"], env=self.env, capture_output=True, timeout=WAIT_S
            )
            return done.returncode in (0, 1)
        return False


def find(package: str, binary: str, *, system: bool = True) -> Program | None:
    """A daemon of a Debian package, unpacked or (``system``) installed."""
    root = _root()
    if root is not None:
        home = root / package
        path = home / binary
        if path.exists():
            libraries = [
                home / _LIBRARIES,
                home / _LIBRARIES / "frr",
                home / "lib/x86_64-linux-gnu",
            ]
            env = dict(os.environ, LD_LIBRARY_PATH=":".join(map(str, libraries)))
            program = Program(str(path), env)
            return program if program.works() else None
    if not system:
        return None
    name = Path(binary).name
    installed = shutil.which(name) or (f"/{binary}" if Path(f"/{binary}").exists() else None)
    return Program(installed, dict(os.environ)) if installed else None


def bird2() -> Program | None:
    """BIRD 2."""
    found = find("bird2", "usr/sbin/bird")
    if found is not None and "version 2" in found.run("--version"):
        return found
    return None


def bird2_client() -> Program | None:
    """Its birdc."""
    return find("bird2", "usr/sbin/birdc")


def bird1() -> Program | None:
    """BIRD 1.6, which Calico's is a fork of."""
    found = find("bird", "usr/sbin/bird", system=False)
    if found is not None and "version 1.6" in found.run("--version"):
        return found
    return None


def gobgpd() -> Program | None:
    """GoBGP's daemon."""
    return find("gobgpd", "usr/bin/gobgpd")


def gobgp() -> Program | None:
    """GoBGP's command line."""
    return find("gobgpd", "usr/bin/gobgp")


def frr_bgpd() -> Program | None:
    """FRR's bgpd."""
    return find("frr", "usr/lib/frr/bgpd")


def exabgp() -> Program | None:
    """ExaBGP's Python, to be run with ``-m exabgp``: Debian's, or this one where it can.

    Debian's 4.2 does not run on Python 3.12 and later.
    """
    root = _root()
    if root is None:
        return None
    package = root / "exabgp/usr/lib/python3/dist-packages"
    env = dict(os.environ, PYTHONPATH=str(package))
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [python, "-c", "import exabgp.configuration.environment"]
            done = subprocess.run(command, env=env, capture_output=True, timeout=WAIT_S)
            if done.returncode == 0:
                return Program(python, env)
    return None


def exabgp_settings(address: str) -> dict[str, str]:
    """ExaBGP's environment: as whoever runs it, listening at one address, without pipes of its own.

    ``exabgp.log.enable=false`` crashes 4.2.21.
    """
    return {
        "exabgp.daemon.user": pwd.getpwuid(os.getuid()).pw_name,
        "exabgp.tcp.bind": address,
        "exabgp.tcp.port": str(PORT),
        "exabgp.api.cli": "false",
        "exabgp.log.destination": "stdout",
        "exabgp.log.level": "INFO",
    }


@contextlib.contextmanager
def process(program: Program, arguments: list[str], log: Path, **more: str) -> Iterator[int]:
    """Run a daemon; its process id.  It is killed if it does not end by itself."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [program.path, *arguments],
            env={**program.env, **more},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=log.parent,
        )
        try:
            yield child.pid
        finally:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class Bird:
    """A running BIRD 1 or 2: its configuration, its process, its control socket."""

    def __init__(self, program: Program, client: Program, directory: Path, text: str) -> None:
        self.directory = directory
        self._program = program
        self._client = client
        self.config = directory / "bird.conf"
        self.log = directory / "bird.log"
        self.config.write_text(text)
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Run it until it answers."""
        socket_path = self.directory / "bird.ctl"
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [
                    self._program.path,
                    "-f",
                    *("-c", str(self.config)),
                    *("-s", str(socket_path)),
                    *("-P", str(self.directory / "bird.pid")),
                    *arguments,
                ],
                env=self._program.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + WAIT_S
        while not self.ask("show status").count("up and running"):
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"BIRD did not start:\n{self.log.read_text()}")
            time.sleep(0.02)

    def ask(self, command: str) -> str:
        """One command through birdc."""
        return self._client.run("-s", str(self.directory / "bird.ctl"), *command.split())

    def configure(self, text: str) -> None:
        """Another configuration."""
        self.config.write_text(text)
        assert "Reconfigur" in self.ask("configure"), self.ask("configure")

    def kill(self) -> None:
        """SIGKILL: no farewell."""
        assert self._child is not None
        self._child.kill()
        self._child.wait()
        self._child = None

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._child is not None
        self._child.send_signal(number)

    def stop(self) -> None:
        """End it as an init system does."""
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            self._child = None


async def until(condition: Callable[[], object], what: str, within_s: float = WAIT_S) -> None:
    """Wait for a condition with a deadline; AssertionError says what did not come."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}")
        await asyncio.sleep(0.02)


def bird2_config(
    me: str,
    router_id: str,
    protocols: str,
    routes: str = "",
    *,
    extra: str = "",
) -> str:
    """A BIRD 2 on one loopback address with a template ``loop`` and a filter ``out``."""
    return f"""
log stderr all;
router id {router_id};
{extra}
protocol device {{ scan time 60; }}
protocol static {{ ipv4; route 10.10.64.0/24 via "lo"; {routes} }}
filter exout {{ if net = 10.10.64.0/24 then reject; accept; }}
template bgp loop {{
  local {me} port {PORT} as 64512;
  multihop; strict bind on;
  connect delay time 1; connect retry time 2; error wait time 1,4;
  ipv4 {{ import all; export filter exout; next hop address {router_id}; }};
}}
{protocols}
"""
