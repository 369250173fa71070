"""calicoctl's verbs on resources: get, create, apply, replace, delete, patch, label.

Source: projectcalico/calico calicoctl/calicoctl/commands/{common/resources,get,apply,…}.go.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jsonpatch

from agents.calico.ctl import documents
from agents.calico.ctl.columns import Cluster, table_rows
from agents.calico.ctl.tables import columns
from agents.calico.errors import AlreadyExistsError, DatastoreError, DoesNotExistError
from agents.calico.resources import KINDS, Kind, kind_named, name_of
from emulator.errors import PodwireError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from agents.calico.client import ResourceClient
    from agents.calico.resources import Resource

OUTPUTS: Final = ("ps", "wide", "yaml", "json", "name", "custom-columns=…")
_DONE: Final = {
    "create": "created",
    "apply": "applied",
    "replace": "replaced",
    "delete": "deleted",
    "patch": "patched",
}


@dataclass(frozen=True, slots=True)
class Console:
    """Where a command writes, how it reads the files its arguments name ("-": stdin), writes them.

    ``read`` and ``write`` (name, text) raise UsageError where that cannot be done.
    """

    out: Callable[[str], None]
    err: Callable[[str], None]
    read: Callable[[str], str]
    write: Callable[[str, str], None]


def find_kind(text: str) -> Kind:
    """The kind a person names; UsageError for what is none."""
    kind = kind_named(text)
    if kind is None:
        raise UsageError(f"resource type '{text}' is not supported")
    return kind


class Commands:
    """The verbs; each returns the exit code."""

    def __init__(self, client: ResourceClient, console: Console) -> None:
        self._client = client
        self._console = console

    # -- get -------------------------------------------------------------------------------------

    async def get(self, args: argparse.Namespace) -> int:
        """Show resources of one kind, by name if names are given, or those a file names."""
        groups: dict[str, list[Resource]] = {}
        failures: list[str] = []
        named = bool(args.names) or args.filename is not None
        if args.filename is not None:
            wanted = [
                (each["kind"], name_of(each), self._namespace(args, each))
                for each in self._resources(args.filename)
            ]
        else:
            if args.kind is None:
                raise UsageError("get: give a resource type, or a file with --filename")
            kind = find_kind(args.kind)
            groups[kind.name] = []
            wanted = [(kind.name, name, self._namespace_of_kind(args, kind)) for name in args.names]
            if not wanted:
                namespace = self._namespace_of_kind(args, kind)
                space = "" if args.all_namespaces else namespace
                groups[kind.name] = await self._client.list(kind.name, space)
        for kind_name, name, namespace in wanted:
            try:
                found = await self._client.get(kind_name, name, namespace)
            except DatastoreError as error:
                failures.append(str(error))
            else:
                groups.setdefault(kind_name, []).append(found)
        if any(groups.values()) or not failures:
            await self._show(args, groups, named=named)
        for failure in failures:
            self._console.err(failure + "\n")
        return 1 if failures else 0

    async def _show(
        self, args: argparse.Namespace, groups: dict[str, list[Resource]], *, named: bool
    ) -> None:
        style: str = args.output
        if style in ("yaml", "json"):
            shown: list[Resource] = []
            for kind, found in groups.items():
                if named:
                    shown += [documents.exported(each) if args.export else each for each in found]
                else:
                    shown.append(documents.as_list(kind, found))
            text = documents.to_yaml(shown) if style == "yaml" else documents.to_json(shown)
            self._console.out(text)
            return
        if style == "name":
            for kind, found in groups.items():
                for each in found:
                    self._console.out(f"{kind}/{name_of(each)}\n")
            return
        custom: tuple[str, ...] = ()
        if style.startswith("custom-columns="):
            names = style.removeprefix("custom-columns=").split(",")
            custom = tuple(name.strip().upper() for name in names)
        cluster = Cluster(await self._as_number())
        for kind, found in groups.items():
            try:
                headings, rows = table_rows(
                    kind,
                    found,
                    cluster,
                    wide=style == "wide",
                    with_namespace=args.all_namespaces and KINDS[kind].namespaced,
                    custom=custom,
                )
            except KeyError as error:
                raise UsageError(
                    f"unknown output format: {kind} has no column {error.args[0]}"
                ) from None
            self._console.out(columns(headings, rows) + "\n")

    async def _as_number(self) -> str:
        try:
            config = await self._client.get("BGPConfiguration", "default")
        except DoesNotExistError:
            return "unknown"
        return str(config["spec"].get("asNumber", "unknown"))

    # -- changes ---------------------------------------------------------------------------------

    async def create(self, args: argparse.Namespace) -> int:
        """Make the resources of a file."""
        return await self._change("create", args, self._client.create, skip=args.skip_exists)

    async def apply(self, args: argparse.Namespace) -> int:
        """Make or replace the resources of a file."""
        return await self._change("apply", args, self._client.apply)

    async def replace(self, args: argparse.Namespace) -> int:
        """Replace the resources of a file, which must exist."""

        async def replace(resource: Resource) -> object:
            old = await self._client.get(
                resource["kind"], name_of(resource), resource["metadata"].get("namespace", "")
            )
            new = copy.deepcopy(resource)
            for field in ("uid", "creationTimestamp", "resourceVersion"):
                new["metadata"].setdefault(field, old["metadata"].get(field))
            return await self._client.update(new)

        return await self._change("replace", args, replace)

    async def delete(self, args: argparse.Namespace) -> int:
        """Delete by kind and names, or the resources of a file."""

        async def delete(resource: Resource) -> object:
            metadata = resource["metadata"]
            await self._client.delete(
                resource["kind"], metadata["name"], metadata.get("namespace", "")
            )
            return None

        return await self._change("delete", args, delete, skip=args.skip_not_exists)

    async def patch(self, args: argparse.Namespace) -> int:
        """Change fields of one resource."""
        try:
            patch = json.loads(args.patch)
        except ValueError as error:
            raise UsageError(f"--patch: not JSON: {error}") from None

        async def change(resource: Resource) -> object:
            return await self._client.update(_patched(resource, patch, args.type))

        return await self._modify("patch", args, [args.name], change)

    async def label(self, args: argparse.Namespace) -> int:
        """Set or, with --remove, take away one label of a resource."""
        key, equals, value = args.label.partition("=")
        if bool(equals) == args.remove or not key:
            raise UsageError(
                "label: give KEY=VALUE to set a label, KEY and --remove to take it away"
            )

        async def change(resource: Resource) -> object:
            labels = dict(resource["metadata"].get("labels") or {})
            if args.remove:
                labels.pop(key, None)
            elif labels.get(key, value) != value and not args.overwrite:
                raise UsageError(
                    f"failed to update label of {resource['kind']} {name_of(resource)}, key "
                    f"{key} is already present, use --overwrite to change it"
                )
            else:
                labels[key] = value
            resource["metadata"]["labels"] = labels
            return await self._client.update(resource)

        return await self._modify("label", args, [args.name], change)

    async def _modify(
        self,
        verb: str,
        args: argparse.Namespace,
        names: list[str],
        change: Callable[[Resource], Awaitable[object]],
    ) -> int:
        kind = find_kind(args.kind)
        namespace = self._namespace_of_kind(args, kind)
        for name in names:
            try:
                await change(await self._client.get(kind.name, name, namespace))
            except PodwireError as error:
                self._console.err(f"Failed to {verb} '{kind.name}' resource: {error}\n")
                return 1
        if verb == "label":
            done = "removed" if args.remove else "set"
            self._console.out(
                f"Successfully {done} label {args.label.partition('=')[0]} on {kind.name} "
                f"{names[0]}\n"
            )
        else:
            self._console.out(
                f"Successfully {_DONE[verb]} {len(names)} '{kind.name}' resource(s)\n"
            )
        return 0

    async def _change(
        self,
        verb: str,
        args: argparse.Namespace,
        act: Callable[[Resource], Awaitable[object]],
        *,
        skip: bool = False,
    ) -> int:
        resources = self._wanted(verb, args)
        failures: list[str] = []
        done = 0
        for resource in resources:
            try:
                await act(resource)
            except (AlreadyExistsError, DoesNotExistError) as error:
                if not skip:
                    failures.append(str(error))
                    continue
            except PodwireError as error:
                failures.append(str(error))
                continue
            done += 1
        kinds = list(dict.fromkeys(resource["kind"] for resource in resources))
        kind = f"'{kinds[0]}' " if len(kinds) == 1 else ""
        if not failures:
            self._console.out(f"Successfully {_DONE[verb]} {done} {kind}resource(s)\n")
            return 0
        listed = f"[{' '.join(failures)}]"
        if not done:
            what = f"{kind}resource" if len(resources) == 1 else f"any {kind}resources"
            self._console.err(f"Failed to {verb} {what}: {listed}\n")
        else:
            self._console.err(
                f"Partial success: {_DONE[verb]} the first {done} out of {len(resources)} "
                f"{kind}resources:\nHit error: {listed}\n"
            )
        return 1

    def _wanted(self, verb: str, args: argparse.Namespace) -> list[Resource]:
        """The resources a verb is about, each in its namespace."""
        if args.filename is not None:
            resources = self._resources(args.filename)
            for resource in resources:
                namespace = self._namespace(args, resource)
                if namespace:
                    resource["metadata"]["namespace"] = namespace
            return resources
        if verb != "delete" or args.kind is None or not args.names:
            raise UsageError(f"{verb}: no resources specified; give a file with --filename")
        kind = find_kind(args.kind)
        namespace = self._namespace_of_kind(args, kind)
        metadata: dict[str, Any] = {"namespace": namespace} if namespace else {}
        return [{"kind": kind.name, "metadata": {"name": name, **metadata}} for name in args.names]

    def _resources(self, filename: str) -> list[Resource]:
        resources = documents.read_documents(self._console.read(filename))
        if not resources:
            raise UsageError(f"No resources specified in file {filename}")
        return resources

    def _namespace(self, args: argparse.Namespace, resource: Resource) -> str:
        """The namespace of a resource of a file; UsageError if file and option differ."""
        kind = KINDS[resource["kind"]]
        own: str = resource["metadata"].get("namespace") or ""
        if not kind.namespaced and own:
            raise UsageError(
                "namespace should not be specified for a non-namespaced resource. "
                f"{kind.name} is not a namespaced resource"
            )
        if own and args.namespace and own != args.namespace:
            raise UsageError(
                f"resource namespace does not match client namespace. {own} != {args.namespace}"
            )
        return own or self._namespace_of_kind(args, kind)

    def _namespace_of_kind(self, args: argparse.Namespace, kind: Kind) -> str:
        everywhere = getattr(args, "all_namespaces", False)
        if everywhere and args.namespace:
            raise UsageError(
                "cannot use both --namespace and --all-namespaces flags at the same time"
            )
        if kind.namespaced:
            return str(args.namespace or "default")
        if everywhere or args.namespace:
            raise UsageError(f"{kind.name} is not namespaced")
        return ""


def _patched(resource: Resource, patch: Any, style: str) -> Resource:
    """A resource after a patch; merge is what strategic means for these kinds."""
    if style == "json":
        try:
            patched: Resource = jsonpatch.apply_patch(resource, patch)
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
            raise UsageError(f"--patch: {error}") from None
        return patched
    if not isinstance(patch, dict):
        raise UsageError("--patch: expected a JSON object")
    return _merged(resource, patch)


def _merged(value: Any, patch: dict[str, Any]) -> Resource:
    """RFC 7396: null removes, objects merge, everything else replaces."""
    out: Resource = dict(value) if isinstance(value, dict) else {}
    for key, change in patch.items():
        if change is None:
            out.pop(key, None)
        elif isinstance(change, dict):
            out[key] = _merged(out.get(key), change)
        else:
            out[key] = change
    return out
