"""From a cluster file to a running supervisor: directory, certificates, fork, watch."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip
from emulator.cluster.credentials import ADMIN, Credentials, api_server_names
from emulator.cluster.pki import write_private
from emulator.cluster.plan import make_plan
from emulator.cluster.process import set_up_log
from emulator.cluster.supervisor import Supervisor, how_ended
from emulator.cluster.zygote import start_zygote
from emulator.errors import PodwireError, UsageError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from emulator.cluster.plan import ClusterPlan
    from emulator.cluster.spec import ClusterSpec
    from emulator.cluster.state import ClusterDirectory
    from etcd.core.access import EtcdAccess

# An etcd of somebody else answers in milliseconds, one across the world in a second.
ETCD_ANSWER_S: Final = 4.0


def prepare(spec: ClusterSpec, directory: ClusterDirectory) -> ClusterPlan:
    """Choose addresses and write certificates, tokens and the kubeconfig.

    ``directory`` must be acquired.  Raises UsageError.
    """
    with _saying_what_cannot_be_written(directory.path):
        plan = make_plan(spec, directory.path, directory.claim_block())
    # At the same time, and so that the library that makes certificates is in no node's memory.
    with in_a_child(functools.partial(_write_credentials, plan)):
        importlib.import_module("emulator.cluster.roles")
    return plan


@contextlib.contextmanager
def _saying_what_cannot_be_written(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{directory}: cannot be written ({error.strerror})") from None


def _write_credentials(plan: ClusterPlan) -> None:
    with _saying_what_cannot_be_written(plan.directory):
        write_credentials(plan)


@contextlib.contextmanager
def in_a_child(work: Callable[[], None]) -> Iterator[None]:
    """Do ``work`` in a forked process while the body runs here; raises UsageError as it does."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except UsageError as error:
            os.write(writable, str(error).encode())
        except Exception:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    os.close(writable)
    try:
        with open(readable) as said:
            yield
            failure = said.read()
    finally:
        _, status = os.waitpid(child, 0)
    if failure:
        raise UsageError(failure)
    if status:
        how = how_ended(os.waitstatus_to_exitcode(status))
        raise PodwireError(f"a process that was to help ended ({how})")


def write_credentials(plan: ClusterPlan) -> None:
    """Write what is missing of the cluster's credentials, and the kubeconfig people use."""
    spec = plan.spec
    emulated = (format_ip(spec.service_cidr.host(1)), format_ip(spec.control_plane_ip))
    credentials = Credentials.make(
        plan.pki,
        cluster=spec.name,
        server=plan.server,
        api_names=api_server_names(addresses=(plan.api_host, *emulated)),
        kubelet_hosts=[node.host for node in plan.nodes],
    )
    write_private(plan.kubeconfig, credentials.kubeconfig(ADMIN).read_bytes())


def supervise(
    plan: ClusterPlan,
    directory: ClusterDirectory,
    *,
    on_progress: Callable[[str, int, int], None],
    on_up: Callable[[], None],
    private_descriptors: tuple[int, ...] = (),
    waiter: int | None = None,
) -> None:
    """Fork the cluster and watch it until SIGINT, SIGTERM or ``podwire down``.

    Everything is gone when this returns or raises, but for the logs of a cluster that ended by
    itself: the PodwireError says where they are.  ``private_descriptors`` are closed in the
    forked processes.  ``waiter`` is a descriptor that becomes readable when whoever waits for the
    cluster to be up gives up; the cluster then ends, unless it is up.
    """
    close = (*private_descriptors, *directory.descriptors())
    channel: socket.socket | None = None
    zygote: int | None = None
    try:
        from emulator.cluster.roles import run_child, warm_up

        if not plan.embedded_etcd:
            asyncio.run(_ask_etcd(plan.etcd_endpoints, plan.spec.etcd_access))
        roles = warm_up(plan)
        channel, zygote = start_zygote(functools.partial(run_child, roles), close)
        asyncio.run(_supervise(plan, channel, on_progress, on_up, waiter))
    except UsageError:
        raise
    except PodwireError as error:
        raise PodwireError(f"{error}; its logs are in {directory.keep_logs()}") from None
    finally:
        if channel is not None:
            channel.close()
        if zygote is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(zygote, 0)
        directory.remove()


async def _supervise(
    plan: ClusterPlan,
    channel: socket.socket,
    on_progress: Callable[[str, int, int], None],
    on_up: Callable[[], None],
    waiter: int | None,
) -> None:
    log = set_up_log("supervisor", plan.log("supervisor"))
    supervisor = Supervisor(plan, channel, log, on_progress)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stop)

    def up() -> None:
        if waiter is not None:
            loop.remove_reader(waiter)
        on_up()

    if waiter is not None:
        loop.add_reader(waiter, supervisor.stop)
    await supervisor.run(up)


async def _ask_etcd(endpoints: tuple[str, ...], access: EtcdAccess) -> None:
    """Raise UsageError unless the etcd we were told to use answers and lets us in."""
    from etcd.client import EtcdClient, EtcdError

    problem = f"no answer within {ETCD_ANSWER_S:.0f} s"
    try:
        async with (
            asyncio.timeout(ETCD_ANSWER_S),
            EtcdClient(endpoints, access=access, timeout_s=ETCD_ANSWER_S / 2) as client,
        ):
            await client.get(b"/coreos.com/network/config")
            return
    except EtcdError as error:
        problem = error.message
    except TimeoutError:
        pass
    raise UsageError(f"etcd at {','.join(endpoints)} cannot be used: {problem}")
