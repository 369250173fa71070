"""bird on a node: the speaker with its control socket, BFD, and those who look on (BMP, MRT).

One that was told to end (``birdc down``) comes back, as its supervisor would see to.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from agents.bird.config import BGP_PORT
from agents.bird.ctl.reply import Dialect
from agents.bird.ctl.server import BirdControl
from agents.bird.daemon import BirdDaemon
from agents.bird.events import PeerListChanged, SessionUp
from agents.bird.fsm import State
from agents.bird.netlink import NamespacePort
from agents.bird.speaker import Speaker
from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.runtime.listener import listen_tcp

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from agents.bird.bfd_daemon import BfdDaemon
    from agents.bird.config import SpeakerConfig
    from agents.bird.ctl.show_daemon import BfdRow
    from agents.bird.events import Event
    from agents.bird.observers import BmpClient, MrtLog, Taps
    from agents.bird.peer import Peer
    from agents.node.config import CalicoSettings, NodeConfig
    from agents.node.underlay_map import UnderlayEntry
    from emulator.netstack.kernel import Kernel
    from emulator.runtime.role import RoleEnv

_LOOPBACK: Final = 127
# How long a node waits for its BGP peers before it calls itself ready without them.
PEERS_S: Final = 5.0
# How long a neighbour that connects may wait for our configuration to know of it: confd's longest
# rest, a few times over.
PATIENCE_S: Final = 5.0
# Before bird comes back after `birdc down`: runsv's second.
RESPAWN_S: Final = 1.0
# Below the node's "/": the file of ``mrtMessages``.
MRT_FILE: Final = "var/log/calico/bird/messages.mrt"


class NodeBird:
    """Keeps bird running; neighbours are named by their emulated addresses."""

    def __init__(self, config: NodeConfig, settings: CalicoSettings, kernel: Kernel) -> None:
        self._config = config
        self._settings = settings
        self._kernel = kernel
        self._wanted: SpeakerConfig | None = None
        self._configured = asyncio.Event()
        # Set with every configuration, for whoever listens at its port.
        self._reconfigured = asyncio.Event()
        self._established = asyncio.Event()
        # Taken before this node is published, and given to bird's first life.
        self._listener: socket.socket | None = self._listen()
        self._by_ip: dict[int, tuple[str, int]] = {}
        self._by_host: dict[str, int] = {}
        # Of the present life; None between two.
        self._daemon: BirdDaemon | None = None
        self._control: BirdControl | None = None
        self._bfd: BfdDaemon | None = None
        self._bmp: BmpClient | None = None
        self._mrt: MrtLog | None = None

    def close(self) -> None:
        """Give back what no life has taken."""
        if self._listener is not None:
            self._listener.close()

    def _listen(self) -> socket.socket:
        """BGP's socket: from here on neighbours' connections wait for bird to take them."""
        host, port = self._config.host, self._settings.bgp_port
        try:
            return listen_tcp(host, port)
        except OSError as error:
            raise UsageError(f"bird cannot listen on {host}:{port}: {error}") from None

    def configure(self, config: SpeakerConfig) -> None:
        """What confd computed."""
        self._wanted = config
        self._configured.set()
        self._reconfigured.set()
        if self._control is not None:
            self._control.configure(self._wanted)

    async def run(self, env: RoleEnv) -> None:
        """Run until cancelled, from the first configuration on."""
        await self._configured.wait()
        recover = False
        while True:
            await self._live(env, recover=recover)
            recover = True
            await asyncio.sleep(RESPAWN_S)

    async def _live(self, env: RoleEnv, *, recover: bool) -> None:
        """One life: until it is told to end.  Raises UsageError for a taken port."""
        assert self._wanted is not None
        try:
            self._observe(env)
            await self._live_observed(env, recover=recover)
        finally:
            self._end()

    async def _live_observed(self, env: RoleEnv, *, recover: bool) -> None:
        assert self._wanted is not None
        now = asyncio.get_running_loop().time()
        speaker = Speaker(
            self._wanted,
            env.rng,
            now=now,
            kernel=NamespacePort(self._kernel.root),
            tap=self._tap(),
            recover=recover,
        )
        listener, self._listener = self._listener or self._listen(), None
        daemon = self._daemon = BirdDaemon(
            speaker,
            env.log,
            listen=listener,
            resolve=self._resolve,
            name_of=self._name_of,
            local_host=self._config.host,
            on_event=self._event,
            patience_s=PATIENCE_S,
        )
        control = self._control = BirdControl(
            daemon,
            path=self._settings.bird_ctl,
            read_config=lambda: self._wanted,
            clock=env.clock,
            log=env.log,
            root=self._config.root,
            dialect=Dialect(self._settings.bird_dialect),
            bfd_rows=self._bfd_rows,
        )
        if self._mrt is not None:
            self._mrt.attach(speaker)
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(control.run(), name="bird.ctl"),
                group.create_task(self._wait_for_peers(env, daemon), name="calico.bgp.ready"),
                group.create_task(self._follow_port(env, daemon), name="bird.listen"),
            ]
            if self._bmp is not None:
                self._bmp.attach(speaker, daemon.ports)
                beside.append(group.create_task(self._bmp.run(), name="bird.bmp"))
            await daemon.run()
            for task in beside:
                task.cancel()

    async def _follow_port(self, env: RoleEnv, daemon: BirdDaemon) -> None:
        """Listen at the configured port, too: 179 is where this node is known to listen anyway."""
        known = (BGP_PORT, self._settings.bgp_port)
        port = BGP_PORT
        while True:
            assert self._wanted is not None
            wanted = self._wanted.listen_port
            if wanted != port:
                port = wanted
                try:
                    listener = None if port in known else listen_tcp(self._config.host, port)
                except OSError as error:
                    listener = None
                    env.log.warning(
                        "bird cannot listen on %s:%s: %s", self._config.host, port, error
                    )
                await daemon.listen_also(listener)
            self._reconfigured.clear()
            await self._reconfigured.wait()

    def _observe(self, env: RoleEnv) -> None:
        """Make what was asked for; the code is imported only then."""
        settings = self._settings
        if settings.bfd is not None:
            from agents.bird.bfd_daemon import BfdDaemon

            self._bfd = BfdDaemon(
                self._config.host,
                env.rng,
                env.log,
                resolve=self._host_of,
                name_of=self._name_of,
                on_down=self._bfd_down,
            )
            self._bfd.start()
        if settings.bmp is not None or settings.mrt_messages:
            from agents.bird.observers import BmpClient, MrtLog

            if settings.bmp is not None:
                self._bmp = BmpClient(settings.bmp, env.clock, env.log)
            if settings.mrt_messages:
                try:
                    self._mrt = MrtLog(self._config.root / MRT_FILE, env.clock, env.log)
                except OSError as error:
                    env.log.warning("mrt: %s: %s", error.filename, error.strerror)

    def _tap(self) -> BmpClient | MrtLog | Taps | None:
        taps = [tap for tap in (self._bmp, self._mrt) if tap is not None]
        if not taps:
            return None
        from agents.bird.observers import Taps

        return taps[0] if len(taps) == 1 else Taps(taps)

    def _end(self) -> None:
        if self._bfd is not None:
            self._bfd.close()
        if self._mrt is not None:
            self._mrt.close()
        self._daemon = self._control = self._bfd = self._bmp = self._mrt = None

    # -- events ------------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        if isinstance(event, SessionUp | PeerListChanged):
            self._established.set()
        for watcher in (self._control, self._bfd, self._bmp, self._mrt):
            if watcher is not None:
                watcher.event(event)

    def _bfd_down(self, neighbor: int) -> None:
        daemon = self._daemon
        if daemon is not None:
            daemon.speaker.bfd_down(neighbor, now=daemon.loop.time())
            daemon.after_input()

    def _bfd_rows(self) -> Sequence[BfdRow]:
        return () if self._bfd is None else self._bfd.rows()

    async def _wait_for_peers(self, env: RoleEnv, daemon: BirdDaemon) -> None:
        """Ready as calico-node's probe has it: once every peer is established, or after a while."""
        speaker = daemon.speaker
        try:
            async with asyncio.timeout(PEERS_S):
                # All peers are looked at twice, not at every session that comes up.
                while waiting := [*filter(_is_awaited, speaker.peers.values())]:
                    while waiting:
                        peer = waiting[-1]
                        if speaker.peers.get(peer.config.name) is not peer or not _is_awaited(peer):
                            waiting.pop()
                            continue
                        self._established.clear()
                        await self._established.wait()
        except TimeoutError:
            late = filter(_is_awaited, speaker.peers.values())
            names = ", ".join(peer.config.name for peer in late)
            env.log.warning("BGP not established with %s", names)
        env.ready("bird speaks BGP")

    # -- neighbours --------------------------------------------------------------------------------

    def _resolve(self, ip: int) -> tuple[str, int] | None:
        if ip >> 24 == _LOOPBACK:
            return format_ip(ip), self._settings.bgp_port
        return self._by_ip.get(ip)

    def _host_of(self, ip: int) -> str | None:
        found = self._resolve(ip)
        return None if found is None else found[0]

    def _name_of(self, host: str) -> int | None:
        known = self._by_host.get(host)
        return parse_ip(host) if known is None else known

    def peers_changed(self, up: list[UnderlayEntry], gone: list[UnderlayEntry]) -> None:
        """Routers are where their nodes are."""
        for entry in gone:
            self._by_ip.pop(parse_ip(entry.ip), None)
            self._by_host.pop(entry.underlay, None)
        for entry in up:
            ip = parse_ip(entry.ip)
            self._by_ip[ip] = (entry.underlay, entry.bgp_port or self._settings.bgp_port)
            self._by_host[entry.underlay] = ip
        if self._daemon is not None:
            self._daemon.addresses_changed()


def _is_awaited(peer: Peer) -> bool:
    return not peer.config.disabled and peer.state is not State.ESTABLISHED
