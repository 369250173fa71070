"""The running member: engine, watch hub and storage, driven once per loop tick.

A request is applied at once, in memory.  What it changed is written and synced once for all
requests of the tick; only then are its response, the responses that may have seen the change, and
the watch events released.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from typing import TYPE_CHECKING, Protocol

from emulator.errors import UsageError
from etcd.core.engine import Engine
from etcd.core.errors import NO_SPACE, SERVER_STOPPED, EtcdError
from etcd.core.identity import derive_ids
from etcd.core.lease import EXPIRY_INTERVAL_S
from etcd.core.mvcc import COMPACT_SLICE_ROWS
from etcd.core.pb import rpc_pb2 as pb
from etcd.core.watch import WatchHub
from etcd.server.auth import AuthService
from etcd.server.storage import NoSpaceError, Storage, StorageError

if TYPE_CHECKING:
    from emulator.runtime.role import RoleEnv
    from etcd.server.config import EtcdConfig
    from etcd.server.v2 import V2Keys

# A slice of long work ends with the first piece that is done after so long.
WORK_SLICE_S = 0.003
# Snapshot slices written per loop tick take about a millisecond each; the pause lets requests in.
SNAPSHOT_PAUSE_S = 0.001


class Caller(Protocol):
    """Who waits for responses."""

    def release(self, call_id: int, payload: bytes, final: bool) -> None:
        """Send a response message; ``final``: the call is over with OK."""

    def refuse(self, call_id: int, error: EtcdError) -> None:
        """End a call with an error."""

    def flush(self) -> None:
        """Write what was released to the socket."""


class Work(Protocol):
    """Something long, done a slice per loop tick."""

    def step(self) -> bool:
        """Do one slice; True if there is more that could be done at once.

        Otherwise it is over, or waits for a client that reads too slowly.
        """


class _Compaction:
    """Goes on with the store's compaction (``Work``)."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def step(self) -> bool:
        member = self._member
        store, loop = member.engine.store, member.loop
        until = loop.time() + WORK_SLICE_S
        while store.compact_some(COMPACT_SLICE_ROWS):
            if loop.time() >= until:
                return True
        member.end_work(self)
        return False


class Member:
    """See the module."""

    def __init__(self, config: EtcdConfig, env: RoleEnv, loop: asyncio.AbstractEventLoop) -> None:
        """Recover the state from disk; UsageError or CorruptionError when that cannot be."""
        self.config = config
        self.env = env
        self.loop = loop
        # None: memory only.
        self.storage: Storage | None = None
        if config.durability != "memory":
            self.storage = Storage(config.data_dir, sync=config.durability == "fsync")
        try:
            self.engine = self._recover()
            self.engine.start(now=loop.time())
            if config.enable_v2 or self.engine.v2 is not None:
                self.engine.enable_v2().publish(int(env.clock.time() * 1e9))
            self._append()
            self.auth = AuthService(self)
        except BaseException:
            self.close_files()
            raise
        self.hub = WatchHub(self.engine.store, lambda rev: self.engine.header_bytes(rev))
        self.client_urls: tuple[str, ...] = config.advertise_client_urls
        # Completed when the disk failed: run() raises it.
        self.failure: asyncio.Future[None] = loop.create_future()
        self._waiting: list[tuple[Caller, int, bytes, bool]] = []
        self._touched: dict[Caller, None] = {}
        self._flush_scheduled = False
        self._sync_scheduled = False
        self._work: dict[Work, None] = {}
        self._compaction = _Compaction(self)
        self._lease_wake = asyncio.Event()
        # When the expiry task wakes by itself.
        self._lease_due = float("inf")
        self._snapshot_wanted = asyncio.Event()
        # The log index of the newest snapshot this process took.
        self._snapshot_index = self.engine.raft_index
        self.stopped = False
        # The v2 API, if it is enabled.
        self.v2: V2Keys | None = None
        if config.enable_v2:
            from etcd.server.v2 import V2Keys

            self.v2 = V2Keys(self)

    # Recovery ------------------------------------------------------------------------------

    def _recover(self) -> Engine:
        ids = self.storage.identity() if self.storage is not None else None
        if ids is None:
            ids = derive_ids(self.config.peer_urls, self.config.cluster_token)
        engine = Engine(
            *ids,
            quota_bytes=self.config.quota_bytes,
            max_request_bytes=self.config.max_request_bytes,
            max_txn_ops=self.config.max_txn_ops,
        )
        if self.storage is not None:
            self.storage.load(engine)
        return engine

    def _append(self) -> None:
        records = self.engine.take_records()
        if records and self.storage is not None:
            try:
                self.storage.append(records)
            except NoSpaceError:
                # The start record alone: serve reads, refuse writes.
                self.engine.set_alarm(self.engine.member_id, pb.NOSPACE, active=True)
                self.engine.take_records()
        self.engine.take_commits()

    def close_files(self) -> None:
        """Close the data directory."""
        if self.storage is not None:
            self.storage.close()

    # Responses -----------------------------------------------------------------------------

    def answer(self, caller: Caller, call_id: int, payload: bytes, *, final: bool = True) -> None:
        """Send a response as soon as everything it may have seen is durable."""
        if self.failure.done():
            # The disk failed: what memory holds may never become durable.
            caller.refuse(call_id, self.stopped_error())
        elif self.engine.dirty:
            self._waiting.append((caller, call_id, payload, final))
            self.schedule_flush()
        else:
            caller.release(call_id, payload, final)

    def touch(self, caller: Caller) -> None:
        """Have a caller's output written at the end of this tick."""
        self._touched[caller] = None
        self.schedule_flush()

    def schedule_flush(self) -> None:
        """Have pending changes made durable at the end of this tick."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self.failure.done():
            return
        records = self.engine.take_records()
        waiting, self._waiting = self._waiting, []
        if records and self.storage is not None:
            try:
                self.storage.append(records)
            except NoSpaceError as error:
                self._disk_full(str(error), waiting)
                return
            except StorageError as error:
                self.failure.set_exception(error)
                return
            self._after_append(self.storage)
        for revision, changes in self.engine.take_commits():
            self.hub.notify(revision, changes)
        if self.engine.store.compacting:
            self.begin_work(self._compaction)
        if records:
            due = self.engine.leases.get_timer()
            if due is not None and due < self._lease_due:
                self._lease_wake.set()
            self.schedule_sync()
        touched, self._touched = self._touched, {}
        for caller, call_id, payload, final in waiting:
            caller.release(call_id, payload, final)
            touched[caller] = None
        for caller in touched:
            caller.flush()

    def _after_append(self, storage: Storage) -> None:
        count = self.config.snapshot_count
        if storage.log_bytes > max(self.config.snapshot_bytes, storage.snapshot_size) or (
            count and self.engine.raft_index - self._snapshot_index > count
        ):
            self._snapshot_wanted.set()
        if storage.disk_full and self.engine.set_alarm(
            self.engine.member_id, pb.NOSPACE, active=True
        ):
            self.env.log.error(
                "%s: disk full, NOSPACE alarm raised; make room, then 'etcdctl alarm disarm'",
                self.config.data_dir,
            )
            self.schedule_flush()

    def _disk_full(self, reason: str, waiting: list[tuple[Caller, int, bytes, bool]]) -> None:
        """Go back to the durable state: what could not be written was never answered."""
        self.env.log.error("%s; NOSPACE alarm raised, writes are refused", reason)
        old = self.engine
        engine = self._recover()
        engine.leases.renew_all(now=self.loop.time())
        for lease in engine.leases:
            known = old.leases.get(lease.id)
            if known is not None:
                lease.expires_at = known.expires_at
        engine.raft_term = old.raft_term
        engine.counts = old.counts
        engine.counts.proposals_failed += len(waiting)
        engine.set_alarm(engine.member_id, pb.NOSPACE, active=True)
        # The alarm itself may not fit on the disk either; it holds while this process lives.
        engine.take_records()
        self.engine = engine
        self.hub.rebase(engine.store)
        if old.v2 is not None:
            old.v2.store.hub.clear()
        for caller, call_id, _, _ in waiting:
            caller.refuse(call_id, EtcdError(*NO_SPACE))
            self.touch(caller)
        self.schedule_flush()

    # Watches that lag, long work ---------------------------------------------------------------

    def begin_work(self, work: Work) -> None:
        """Have ``work.step()`` called until ``end_work``."""
        self._work[work] = None
        self.schedule_sync()

    def end_work(self, work: Work) -> None:
        """Call it no more; nothing happens if it is not known."""
        self._work.pop(work, None)

    def schedule_sync(self) -> None:
        """Feed the watchers that lag behind and go on with long work, a slice per tick."""
        if not self._sync_scheduled and (self.hub.lagging or self._work):
            self._sync_scheduled = True
            self.loop.call_soon(self._sync)

    def _sync(self) -> None:
        self._sync_scheduled = False
        more = self.hub.sync()
        for work in list(self._work):
            more = work.step() or more
        if more:
            self.schedule_sync()

    # Background ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Expire leases, send progress, take snapshots; raises StorageError when the disk fails."""
        if self.engine.store.compacting:
            self.begin_work(self._compaction)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._expire_leases(), name="etcd.leases")
                group.create_task(self._send_progress(), name="etcd.progress")
                group.create_task(self._take_snapshots(), name="etcd.snapshots")
                if self.config.compaction_retention:
                    group.create_task(self._compact(), name="etcd.compaction")
                await asyncio.shield(self.failure)
        except BaseExceptionGroup as group_error:
            # A StorageError is for whoever runs us, not for a group's handler.
            if len(group_error.exceptions) == 1:
                raise group_error.exceptions[0] from None
            raise

    async def _expire_leases(self) -> None:
        while True:
            due = self.engine.leases.get_timer()
            now = self.loop.time()
            self._lease_due = float("inf") if due is None else due
            if due is None:
                self._lease_wake.clear()
                await self._lease_wake.wait()
            elif due > now:
                self._lease_wake.clear()
                try:
                    async with asyncio.timeout(due - now + EXPIRY_INTERVAL_S / 2):
                        await self._lease_wake.wait()
                except TimeoutError:
                    pass
            else:
                self.engine.expire(now=now)
                self.schedule_flush()
                await asyncio.sleep(EXPIRY_INTERVAL_S)

    async def _send_progress(self) -> None:
        while True:
            # etcd adds up to 10 % so that many servers' watchers do not beat together.
            jitter = self.env.rng.random() * 0.1
            await asyncio.sleep(self.config.progress_interval_s * (1 + jitter))
            self.hub.progress()

    async def _take_snapshots(self) -> None:
        storage = self.storage
        while storage is not None:
            await self._snapshot_wanted.wait()
            self._snapshot_wanted.clear()
            if self.engine.dirty or self.engine.store.compacting:
                self._snapshot_wanted.set()
                await asyncio.sleep(0)
                continue
            payloads = self.engine.snapshot(storage.sequence)
            self._snapshot_index = self.engine.raft_index
            try:
                for _ in storage.write_snapshot(payloads):
                    await asyncio.sleep(SNAPSHOT_PAUSE_S)
            except NoSpaceError as error:
                self.env.log.error("snapshot given up, the log goes on: %s", error)

    async def _compact(self) -> None:
        """Compact by --auto-compaction-mode and -retention."""
        from etcd.core import compactor

        config, loop = self.config, self.loop
        retention = config.compaction_retention
        mode: compactor.Compactor = (
            compactor.Revision(int(retention), now=loop.time())
            if config.compaction_mode == "revision"
            else compactor.Periodic(retention, self.engine.store.revision, now=loop.time())
        )
        while True:
            await asyncio.sleep(mode.get_timer() - loop.time())
            revision = mode.handle_timer(self.engine.store.revision, now=loop.time())
            if revision is None:
                continue
            with contextlib.suppress(EtcdError):
                # Somebody else may have compacted it already.
                self.engine.compact(pb.CompactionRequest(revision=revision))
                self.env.log.info("finished auto-compaction at revision %d", revision)
                self.schedule_flush()
            mode.compacted(revision, now=loop.time())

    def stop(self) -> None:
        """Make what is pending durable, release it; nothing runs after."""
        self._flush()
        self.stopped = True
        if self.v2 is not None:
            self.v2.close()
        self.auth.close()
        if not self.failure.done():
            self.failure.cancel()

    def stopped_error(self) -> EtcdError:
        """What open streams are told at shutdown."""
        return EtcdError(*SERVER_STOPPED)


def server_tls(config: EtcdConfig) -> ssl.SSLContext | None:
    """Return the listener's TLS context, None for plain text; UsageError for bad files.

    With auto_tls it has no certificate yet (``load_own_certificate``).
    """
    if not config.auto_tls and (config.cert_file is None or config.key_file is None):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        if config.cert_file is not None:
            context.load_cert_chain(config.cert_file, config.key_file)
        if config.client_ca_file is not None:
            context.load_verify_locations(config.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"TLS files of etcd: {error}") from None
    return context


def load_own_certificate(context: ssl.SSLContext, config: EtcdConfig, now_s: float) -> None:
    """Give a context the data directory's own certificate, made at the first start."""
    if config.cert_file is not None:
        return
    from etcd.server.selfcert import self_signed

    hosts = dict.fromkeys(address.host for address in config.listen_at if address.host)
    directory = os.path.join(config.data_dir, "fixtures", "client")
    try:
        context.load_cert_chain(*self_signed(directory, ("localhost", *hosts), now_s))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--auto-tls: {directory}: {error}") from None
