"""What ``calicoctl ipam`` prints, and the report it writes and reads (pure).

Source: projectcalico/calico calicoctl/calicoctl/commands/ipam/{show,check,release}.go.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agents.calico.ctl.tables import box
from agents.calico.errors import DatastoreError
from agents.calico.ipam.block import AllocationBlock, ReleaseOptions
from agents.calico.ipam.model import HANDLE_PREFIX, block_of_key
from agents.calico.net import Ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agents.calico.datastore import KVPair
    from agents.calico.ipam.block import Attribute
    from agents.calico.ipam.check import Allocation, CheckReport
    from agents.calico.ipam.model import IpamConfig
    from agents.calico.ipam.show import Borrowed, UsageRow
    from agents.calico.resources import Resource

_USAGE: Final = ("GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS FREE")
_BORROWED: Final = ("IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO")
# Nodes that `check` names.
TOP_NODES: Final = 20


class LeakedHandle(NamedTuple):
    """A handle without addresses, at the revision at which it was seen."""

    id: str
    revision: str


class Leaks(NamedTuple):
    """What one report, or all of several, call leaked."""

    ips: dict[str, ReleaseOptions]
    handles: dict[str, LeakedHandle]


def usage_table(rows: Iterable[UsageRow]) -> str:
    """``ipam show``, with blocks if there are rows of them."""
    return box(
        _USAGE,
        [
            (
                row.grouping,
                str(row.cidr),
                f"{row.total:.5g}",
                _share(row.in_use, row.total),
                _share(row.free, row.total),
            )
            for row in rows
        ],
    )


def _share(count: int, total: int) -> str:
    return f"{count:.5g} ({100 * count / total:.0f}%)"


def borrowed_table(found: Borrowed) -> str:
    """``ipam show --show-borrowed``."""
    out = box(_BORROWED, [tuple(map(str, row)) for row in found.rows])
    if found.unclassified:
        out += (
            f"\nNote: found {found.unclassified} IP allocations without an explicit node "
            "association. Unable to determine if they are borrowed.\n"
        )
    return out


def configuration_table(config: IpamConfig) -> str:
    """``ipam show --show-configuration``."""
    return box(
        ("PROPERTY", "VALUE"),
        [
            ("StrictAffinity", str(config.strict_affinity).lower()),
            ("AutoAllocateBlocks", str(config.auto_allocate_blocks).lower()),
            ("MaxBlocksPerHost", str(config.max_blocks_per_host)),
        ],
    )


def holder_text(ip: Ip, holder: Attribute | None) -> str:
    """``ipam show --ip``; None: nobody holds it."""
    if holder is None:
        return f"{ip} is not assigned\n"
    out = f"IP {ip} is in use\n"
    if not holder.secondary:
        return out + "No attributes defined\n"
    return (
        out
        + "Attributes:\n"
        + "".join(f"  {key}: {holder.secondary[key]}\n" for key in sorted(holder.secondary))
    )


# -- check -----------------------------------------------------------------------------------------


def check_lines(report: CheckReport, *, show_all: bool, show_problems: bool) -> Iterator[str]:
    """``ipam check``, line by line."""
    show_problems = show_problems or show_all
    yield "Checking IPAM for inconsistencies..."
    yield ""
    yield "Loading all IPAM blocks..."
    yield f"Found {len(report.blocks)} IPAM blocks."
    for block in report.blocks:
        yield f" IPAM block {block.cidr} affinity={block.affinity}:"
        for each in report.allocations if show_all else ():
            if each.block == block.cidr:
                yield f"  {each.ip} allocated; attrs {_attributes(each)}"
    yield f"IPAM blocks record {len(report.allocations)} allocations."
    yield ""
    yield "Loading all IPAM pools..."
    for pool in report.active_pools:
        yield f"  {pool}"
    yield f"Found {len(report.active_pools)} active IP pools."
    yield ""
    yield "Loading all nodes."
    yield from _belonging(report, "Node(") if show_all else ()
    yield f"Found {report.node_ips} node tunnel IPs."
    yield ""
    yield "Loading all workload endpoints."
    yield from _belonging(report, "Workload(") if show_all else ()
    yield f"Found {report.workload_ips} workload IPs."
    yield f"Workloads and nodes are using {len(report.owners)} IPs."
    yield ""
    yield "Loading all handles"
    yield f"Looking for top (up to {TOP_NODES}) nodes by allocations..."
    for node, count in report.by_node[:TOP_NODES]:
        yield f"  {node} has {count} allocations"
    if report.by_node:
        most = report.by_node[0][1]
        yield f"Node with most allocations has {most}; median is {report.median}"
    yield ""
    yield from _findings(report, show_all=show_all, show_problems=show_problems)
    yield f"Check complete; found {report.problems} problems."


def _belonging(report: CheckReport, kind: str) -> Iterator[str]:
    for ip, owners in report.owners:
        for owner in owners:
            if owner.startswith(kind):
                yield f"  {ip} belongs to {owner}"


def _findings(report: CheckReport, *, show_all: bool, show_problems: bool) -> Iterator[str]:
    owners = dict(report.owners)
    yield "Scanning for IPs that are allocated but not actually in use..."
    for each in report.leaked if show_problems else ():
        yield f"  {each.ip} leaked; attrs {_attributes(each)}"
    yield f"Found {len(report.leaked)} IPs that are allocated in IPAM but not actually in use."
    yield "Scanning for IPs that are in use by a workload or node but not allocated in IPAM..."
    if show_problems:
        for ip, _ in report.double_owners:
            yield f"  {ip} has multiple owners."
        for ip in report.outside_pools:
            for owner in owners[ip]:
                yield f"  {ip} in use by {owner} is not in any active IP pool."
        for ip in report.unallocated:
            for owner in owners[ip]:
                who = f"{ip} in use by {owner}"
                yield f"  {who} and in active IPAM pool but has no IPAM allocation."
    yield f"Found {len(report.outside_pools)} in-use IPs that are not in active IP pools."
    yield (
        f"Found {len(report.unallocated)} in-use IPs that are in active IP pools but have no "
        "corresponding IPAM allocation."
    )
    yield ""
    yield "Scanning for IPAM handles with no matching IPs..."
    for handle in report.leaked_handles if show_all else ():
        yield f"  {handle} doesn't have any active IPs."
    yield (
        f"Found {len(report.leaked_handles)} handles with no matching IPs (and "
        f"{report.good_handles} handles with matches)."
    )
    yield "Scanning for IPs with missing handle..."
    for handle in report.missing_handles if show_problems else ():
        yield f"  {handle} is in use in a block but doesn't exist."
    yield (
        f"Found {len(report.missing_handles)} handles mentioned in blocks with no matching "
        "handle resource."
    )


def _attributes(allocation: Allocation) -> str:
    known = allocation.attribute.secondary or {}
    extra = ",".join(f"{key}={known[key]}" for key in sorted(known))
    return f"Main:{allocation.handle or '<none>'} Extra:{extra}"


# -- the report of check, which release reads ------------------------------------------------------


def report_text(
    report: CheckReport, found: Sequence[KVPair], cluster: Resource, version: str
) -> str:
    """``ipam check -o``: JSON of all allocations and leaked handles."""
    sequences: dict[Ip, int] = {}
    revisions: dict[str, int] = {}
    for kvp in found:
        if block_of_key(kvp.key) is not None:
            held = AllocationBlock.from_value(kvp.value).held()
            sequences.update((ip, number) for ip, _, number in held)
        elif kvp.key.startswith(HANDLE_PREFIX):
            revisions[kvp.key.removeprefix(HANDLE_PREFIX)] = kvp.revision
    owners = dict(report.owners)
    allocations: dict[str, list[dict[str, Any]]] = {}
    for each in report.allocations:
        known = each.attribute.secondary or {}
        value: dict[str, Any] = {"ip": str(each.ip)}
        if each.handle:
            value["handle"] = each.handle
        value["sequenceNumber"] = sequences[each.ip]
        named = ("pod", "namespace", "node", "type")
        value.update((key, known[key]) for key in named if known.get(key))
        if known.get("timestamp"):
            value["creationTimestamp"] = known["timestamp"]
        value["inUse"] = each.ip in owners
        if each.borrowed:
            value["borrowed"] = True
        value["owners"] = list(owners[each.ip]) if each.ip in owners else None
        allocations.setdefault(str(each.ip), []).append(value)
    spec = cluster["spec"]
    document: dict[str, Any] = {
        "version": version,
        "clusterGUID": spec.get("clusterGUID", ""),
        "datastoreLocked": spec.get("datastoreReady") is False,
        "clusterInformationRevision": cluster["metadata"].get("resourceVersion", ""),
        "clusterType": spec.get("clusterType", ""),
        "allocations": allocations,
    }
    if report.leaked_handles:
        document["leakedHandles"] = [
            {"ID": handle, "UID": None, "Revision": str(revisions[handle])}
            for handle in report.leaked_handles
        ]
    return json.dumps(document, indent=2)


def read_report(name: str, text: str) -> dict[str, Any]:
    """A report as ``report_text`` writes it; UsageError for anything else."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{name}: not an IPAM report: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("allocations"), dict):
        raise UsageError(f"{name}: not an IPAM report: it has no allocations")
    return document


def check_reports(
    reports: Sequence[tuple[str, dict[str, Any]]], cluster: Resource, version: str, *, force: bool
) -> list[str]:
    """Warnings about reports that may be used; DatastoreError says why they may not."""
    warnings: list[str] = []
    spec = cluster["spec"]
    for name, report in reports:
        if report.get("clusterGUID") != spec.get("clusterGUID", ""):
            raise DatastoreError(
                f"cluster does not match the provided report ({name}): mismatched cluster GUID. "
                "Refusing to release"
            )
        if report.get("version") != version:
            if not force:
                raise DatastoreError(
                    f"the provided report ({name}) was produced using a different version "
                    f"({report.get('version')}) of calicoctl. Refusing to release"
                )
            warnings.append(
                "WARNING: Report was produced using a different version of calicoctl. "
                "Ignoring due to --force option"
            )
    current = cluster["metadata"].get("resourceVersion", "")
    if all(report.get("clusterInformationRevision") != current for _, report in reports):
        raise DatastoreError(
            "the provided reports are all stale - at least one should be up-to-date. Please "
            "generate a new report while the data store is locked and try again"
        )
    if spec.get("datastoreReady") is not False:
        if not force:
            raise DatastoreError(
                "data store is not locked. Either lock the data store, or re-run with --force"
            )
        warnings.append("WARNING: Data store is not locked. Ignoring due to --force option")
    return warnings


def merge_reports(reports: Iterable[dict[str, Any]]) -> Leaks:
    """What every report calls leaked, as the last one describes it."""
    merged: Leaks | None = None
    for report in reports:
        ips: dict[str, ReleaseOptions] = {}
        for each in _allocations(report):
            ip = str(each.get("ip"))
            if each.get("inUse") or (merged is not None and ip not in merged.ips):
                continue
            number = each.get("sequenceNumber")
            sequence = number if isinstance(number, int) else None
            ips[ip] = ReleaseOptions(Ip.parse(ip), str(each.get("handle") or ""), sequence)
        handles: dict[str, LeakedHandle] = {}
        for each in report.get("leakedHandles") or ():
            handle = LeakedHandle(str(each.get("ID")), str(each.get("Revision")))
            if merged is None or merged.handles.get(handle.id) == handle:
                handles[handle.id] = handle
        merged = Leaks(ips, handles)
    return merged or Leaks({}, {})


def _allocations(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for found in report["allocations"].values():
        for each in found if isinstance(found, list) else ():
            if isinstance(each, dict):
                yield each
