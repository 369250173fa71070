"""``calicoctl ipam``: show, check, release, configure.

Source: projectcalico/calico calicoctl/calicoctl/commands/ipam/*.go.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agents.calico.ctl import ipam_text
from agents.calico.datastore import Delete, Query
from agents.calico.errors import DatastoreError, DoesNotExistError, UpdateConflictError
from agents.calico.ipam.block import ReleaseOptions
from agents.calico.ipam.check import PREFIXES, check
from agents.calico.ipam.ipam import Ipam
from agents.calico.ipam.model import handle_key
from agents.calico.ipam.show import borrowed, usage_rows
from agents.calico.net import Ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from agents.calico.client import ResourceClient
    from agents.calico.ctl.ipam_text import LeakedHandle, Leaks
    from agents.calico.ctl.main import Environment

# What Go's strconv.ParseBool takes.
_TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")
_FALSE: Final = ("0", "f", "F", "FALSE", "false", "False")
# A C int32, as the original's.
_INT32: Final = 1 << 31


class IpamCommands:
    """The verbs; each returns the exit code."""

    def __init__(self, env: Environment, client: ResourceClient, version: str) -> None:
        self._datastore = env.datastore
        self._console = env.console
        self._client = client
        self._version = version
        self._ipam = Ipam(env.datastore, env.clock)

    async def show(self, args: argparse.Namespace) -> int:
        """How full pools are, what is borrowed, who holds an address, the settings."""
        out = self._console.out
        if args.ip is not None:
            ip = _address(args.ip)
            try:
                holder = await self._ipam.assignment(ip)
            except DoesNotExistError:
                out(ipam_text.holder_text(ip, None))
            else:
                out(ipam_text.holder_text(ip, holder))
        elif args.show_borrowed:
            out(ipam_text.borrowed_table(borrowed(await self._ipam.blocks())))
        elif args.show_configuration:
            out(ipam_text.configuration_table(await self._ipam.config()))
        else:
            rows = usage_rows(await self._ipam.utilization(), blocks=args.show_blocks)
            out(ipam_text.usage_table(rows))
        return 0

    async def check(self, args: argparse.Namespace) -> int:
        """Compare what blocks record with what is in use."""
        cluster = await self._client.get("ClusterInformation", "default")
        snapshot = await self._datastore.read(*(Query(prefix, prefix=True) for prefix in PREFIXES))
        found = [kvp for kvps in snapshot.results for kvp in kvps]
        report = check(found)
        for line in ipam_text.check_lines(
            report, show_all=args.show_all_ips, show_problems=args.show_problem_ips
        ):
            self._console.out(line + "\n")
        if args.output:
            text = ipam_text.report_text(report, found, cluster, self._version)
            self._console.write(args.output, text)
        return 0

    async def release(self, args: argparse.Namespace) -> int:
        """Free one address, or what reports of ``check`` call leaked."""
        if args.from_report:
            return await self._release_from_reports(args.from_report, force=args.force)
        if args.ip is None:
            raise UsageError("ipam release: give --ip or --from-report")
        ip = _address(args.ip)
        outcome = await self._ipam.release_ips(ReleaseOptions(ip))
        if outcome.failure is not None:
            raise DatastoreError(f"error: {outcome.failure}")
        if outcome.unallocated:
            raise DatastoreError(f"IP address {ip} is not assigned")
        self._console.out(f"Successfully released IP address {ip}\n")
        return 0

    async def _release_from_reports(self, names: list[str], *, force: bool) -> int:
        cluster = await self._client.get("ClusterInformation", "default")
        reports = [(name, ipam_text.read_report(name, self._console.read(name))) for name in names]
        for warning in ipam_text.check_reports(reports, cluster, self._version, force=force):
            self._console.out(warning + "\n")
        leaks = ipam_text.merge_reports(report for _, report in reports)
        await self._release_ips(leaks)
        await self._release_handles(leaks)
        self._console.out("You may now unlock the data store.\n")
        return 0

    async def _release_ips(self, leaks: Leaks) -> None:
        out = self._console.out
        if not leaks.ips:
            out("Report didn't contain any leaked IPs to clean up.\n")
            return
        out(f"Releasing {len(leaks.ips)} old IPs...\n")
        outcome = await self._ipam.release_ips(*leaks.ips.values())
        if outcome.failure is not None:
            out(
                f"An error occurred while releasing some IPs: {outcome.failure}.  Problems are "
                "often caused by an out-of-date IPAM report.  Try regenerating the IPAM report "
                "and retry.\n"
            )
        else:
            out(f"Released {len(leaks.ips) - len(outcome.unallocated)} IPs successfully\n")
        if outcome.unallocated:
            out(
                f"{len(outcome.unallocated)} addresses marked as leaked in the report had already "
                "been cleaned up.\n"
            )

    async def _release_handles(self, leaks: Leaks) -> None:
        out = self._console.out
        if not leaks.handles:
            out("Report didn't contain any handles to clean up.\n")
            return
        out(f"Deleting {len(leaks.handles)} handles...\n")
        out("Key: '.' = Deleted OK; 'x' = skip, handle missing/changed.\n")
        released = 0
        for handle in leaks.handles.values():
            done = await self._delete_handle(handle)
            released += done
            out("." if done else "x")
        skipped = len(leaks.handles) - released
        out(f"\nReleased {released} handles; {skipped} skipped; 0 errors.\n")

    async def _delete_handle(self, handle: LeakedHandle) -> bool:
        """False if it is gone, or not what the report saw any more."""
        key = handle_key(handle.id)
        found = (await self._datastore.read(Query(key))).one(0)
        if found is None or str(found.revision) != handle.revision:
            return False
        try:
            await self._datastore.commit(Delete(key, found.revision))
        except (DoesNotExistError, UpdateConflictError):
            return False
        return True

    async def configure(self, args: argparse.Namespace) -> int:
        """Change the cluster's settings."""
        strict = None if args.strictaffinity is None else _boolean(args.strictaffinity)
        most = None if args.max_blocks_per_host is None else _number(args.max_blocks_per_host)
        if strict is None and most is None:
            raise UsageError("at least one configuration option must be specified")
        config = await self._ipam.config()
        if strict is not None:
            config = replace(config, strict_affinity=strict)
        if most is not None:
            config = replace(config, max_blocks_per_host=most)
        try:
            await self._ipam.set_config(config)
        except DatastoreError as error:
            raise DatastoreError(f"error: {error}") from None
        if strict is not None:
            self._console.out(f"Successfully set StrictAffinity to: {str(strict).lower()}\n")
        if most is not None:
            self._console.out(f"Successfully set MaxBlocksPerHost to: {most}\n")
        return 0


def _address(text: str) -> Ip:
    try:
        return Ip.parse(text)
    except UsageError:
        raise UsageError(f"Error executing command: invalid IP address specified: {text}") from None


def _boolean(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise UsageError("invalid value. Use true or false to set strictaffinity")


def _number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = _INT32
    if not 0 <= value < _INT32:
        raise UsageError("invalid value for maxblockhost. Use a valid number")
    return value
