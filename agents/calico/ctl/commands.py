"""calicoctl's verbs on resources: get, create, apply, replace, delete, patch, label.

Source: projectcalico/calico calicoctl/calicoctl/commands/{common/resources,get,apply,…}.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jsonpatch

from agents.calico import gojson
from agents.calico.ctl import documents
from agents.calico.ctl.columns import Cluster, table_rows
from agents.calico.ctl.tables import columns
from agents.calico.errors import AlreadyExistsError, DatastoreError, DoesNotExistError
from agents.calico.resources import KINDS, Kind, kind_named, name_of
from agents.calico.unenforced import unenforced
from emulator.errors import PodwireError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from agents.calico.client import ResourceClient
    from agents.calico.resources import Resource

OUTPUTS: Final = ("ps", "wide", "yaml", "json", "name", "custom-columns=…")
_COLUMNS: Final = "custom-columns"
_DONE: Final = {"create": "created", "apply": "applied", "replace": "replaced"}
# What the Go client calls the verbs when it refuses them.
_REFUSED_AS: Final = {
    "create": "create or apply",
    "apply": "create or apply",
    "replace": "apply or replace",
}
# How Kubernetes' policies are named in the datastore.
KUBERNETES_POLICY: Final = "knp.default."


@dataclass(frozen=True, slots=True)
class Console:
    """Where a command writes, how it reads the files its arguments name ("-": stdin), writes them.

    ``read`` and ``write`` (name, text) raise UsageError where that cannot be done.
    """

    out: Callable[[str], None]
    err: Callable[[str], None]
    read: Callable[[str], str]
    write: Callable[[str, str], None]


def _check_output(style: str) -> None:
    """UsageError for an output format that is none."""
    name, equals, value = style.partition("=")
    if name in ("go-template", "go-template-file"):
        raise UsageError(f"output format '{name}' needs Go's templates; take json or yaml")
    if name == _COLUMNS and equals:
        if not value:
            raise UsageError("need to specify at least one column")
    elif style not in (*OUTPUTS, "yml"):
        raise UsageError(f"unrecognized output format '{style}'")


def _only_kind(resources: list[Resource]) -> str:
    """The kind in quotes and a blank if all are of one, else nothing."""
    kinds = {resource["kind"]: None for resource in resources}
    return f"'{next(iter(kinds))}' " if len(kinds) == 1 else ""


def refuse_change(resource: Resource, verb: str) -> None:
    """DatastoreError for what only other programs write."""
    kind, name = resource["kind"], resource["metadata"]["name"]
    if kind == "ClusterInformation":
        reason = "resource is readonly"
    elif kind == "NetworkPolicy" and name.startswith(KUBERNETES_POLICY):
        reason = "kubernetes network policies must be managed through the kubernetes API"
    else:
        return
    raise DatastoreError(f"operation {verb} is not supported on {kind}({name}): {reason}")


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
        _check_output(args.output)
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
            try:
                kind = find_kind(args.kind)
            except UsageError as error:
                raise UsageError(f"Failed to get resources: {error}") from None
            if args.names and args.all_namespaces and kind.namespaced:
                raise UsageError("cannot use --all-namespace flag for getting a single resource")
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
        if style in ("yaml", "yml", "json"):
            shown: list[Resource] = []
            for kind, found in groups.items():
                if named:
                    shown += [documents.exported(each) if args.export else each for each in found]
                else:
                    shown.append(documents.as_list(kind, found))
            text = documents.to_json(shown) if style == "json" else documents.to_yaml(shown)
            self._console.out(text)
            return
        if style == "name":
            for kind, found in groups.items():
                for each in found:
                    self._console.out(f"{kind}/{name_of(each)}\n")
            return
        custom: tuple[str, ...] = ()
        if style.startswith(f"{_COLUMNS}="):
            names = style.removeprefix(f"{_COLUMNS}=").split(",")
            custom = tuple(name.strip().upper() for name in names)
        cluster = Cluster(await self._as_number())
        for kind, found in groups.items():
            # What was asked for by name is a table of its own each.
            for table in [[each] for each in found] if named else [found]:
                headings, rows = table_rows(
                    kind,
                    table,
                    cluster,
                    wide=style == "wide",
                    with_namespace=bool(args.all_namespaces or args.namespace)
                    and KINDS[kind].namespaced,
                    custom=custom,
                )
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

        async def apply(resource: Resource) -> object:
            return await self._client.apply(resource, keep_labels=True)

        return await self._change("apply", args, apply)

    async def replace(self, args: argparse.Namespace) -> int:
        """Replace the resources of a file, which must exist."""

        async def replace(resource: Resource) -> object:
            return await self._client.replace(resource)

        return await self._change("replace", args, replace)

    async def delete(self, args: argparse.Namespace) -> int:
        """Delete by kind and names, or the resources of a file."""
        resources = self._wanted("delete", args)
        done = 0
        failures: list[PodwireError] = []
        for resource in resources:
            metadata = resource["metadata"]
            try:
                refuse_change(resource, "delete")
                await self._client.delete(
                    resource["kind"], metadata["name"], metadata.get("namespace", "")
                )
            except DoesNotExistError as error:
                if not args.skip_not_exists:
                    failures.append(error)
                    continue
            except PodwireError as error:
                failures.append(error)
                continue
            done += 1
        kind = _only_kind(resources)
        if done:
            self._console.out(f"Successfully deleted {done} {kind}resource(s)\n")
        for failure in failures:
            self._console.err(f"Failed to delete {kind}resource: {failure}\n")
        return 1 if failures else 0

    async def patch(self, args: argparse.Namespace) -> int:
        """Change fields of one resource."""
        try:
            patch = gojson.loads(args.patch.encode())
        except ValueError as error:
            raise UsageError(f"--patch: not JSON: {error}") from None
        kind = find_kind(args.kind)
        try:
            old = await self._client.get(kind.name, args.name, self._namespace_of_kind(args, kind))
            new = _patched(old, patch, args.type)
            new |= {"kind": old["kind"], "apiVersion": old["apiVersion"]}
            documents.check_fields(new, "the patched resource")
            refuse_change(new, "apply or replace")
            await self._client.update(new)
        except PodwireError as error:
            self._console.err(f"Hit error: {error}\n")
            return 1
        self._warn(new)
        self._console.out(f"Successfully patched 1 '{kind.name}' resource\n")
        return 0

    async def label(self, args: argparse.Namespace) -> int:
        """Set or, with --remove, take away one label of a resource."""
        key, equals, value = args.label.partition("=")
        if bool(equals) == args.remove or not key:
            raise UsageError(
                "label: give KEY=VALUE to set a label, KEY and --remove to take it away"
            )
        kind, who = find_kind(args.kind), f"{args.kind} {args.name}"
        try:
            resource = await self._client.get(
                kind.name, args.name, self._namespace_of_kind(args, kind)
            )
        except DoesNotExistError:
            raise UsageError(f"{who} not found") from None
        labels = dict(resource["metadata"].get("labels") or {})
        done = "set"
        if args.remove:
            if key not in labels:
                raise UsageError(f"cannot remove label of {who}, key {key} does not exist")
            labels.pop(key)
        elif key in labels:
            done = "updated"
            if labels[key] != value and not args.overwrite:
                raise UsageError(
                    f"failed to update label of {who}, key {key} is already present. please use "
                    "'--overwrite' to set a new value."
                )
        if not args.remove:
            labels[key] = value
        resource["metadata"]["labels"] = labels
        try:
            refuse_change(resource, "apply or replace")
            await self._client.update(resource)
        except PodwireError as error:
            raise UsageError(f"failed to update {who}, label not changed: {error}") from None
        said = f"removed label {key} from" if args.remove else f"{done} label {key} on"
        self._console.out(f"Successfully {said} {who}\n")
        return 0

    async def _change(
        self,
        verb: str,
        args: argparse.Namespace,
        act: Callable[[Resource], Awaitable[object]],
        *,
        skip: bool = False,
    ) -> int:
        """Create, apply or replace what a file holds; ``skip`` what is there already."""
        resources = self._wanted(verb, args)
        failures: list[str] = []
        done = 0
        for resource in resources:
            try:
                refuse_change(resource, _REFUSED_AS[verb])
                await act(resource)
            except AlreadyExistsError as error:
                if not skip:
                    failures.append(str(error))
                    continue
            except PodwireError as error:
                failures.append(str(error))
                continue
            self._warn(resource)
            done += 1
        kind = _only_kind(resources)
        if not failures:
            self._console.out(f"Successfully {_DONE[verb]} {done} {kind}resource(s)\n")
            return 0
        # replace keeps one error, the others a list of them.
        listed = failures[-1] if verb == "replace" else f"[{' '.join(failures)}]"
        if not done:
            what = f"{kind}resource" if len(resources) == 1 else f"any {kind}resources"
            self._console.err(f"Failed to {verb} {what}: {listed}\n")
            return 1
        self._console.out(
            f"Partial success: {_DONE[verb]} the first {done} out of {len(resources)} "
            f"{kind}resources:\n"
        )
        self._console.err(f"Hit error{'(s)' if verb == 'apply' else ''}: {listed}\n")
        return 1

    def _warn(self, resource: Resource) -> None:
        """Say what of a written resource nobody will act on."""
        for text in unenforced(resource):
            self._console.err(f"WARNING: {text}\n")

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
        try:
            resources = documents.read_documents(self._console.read(filename))
        except UsageError as error:
            raise UsageError(f"Failed to execute command: {error}") from None
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
        if not isinstance(patch, list):
            raise UsageError("--patch: expected a JSON array of operations")
        try:
            patched = jsonpatch.apply_patch(resource, patch)
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
            raise UsageError(f"--patch: {error}") from None
        if not isinstance(patched, dict):
            raise UsageError("--patch: it leaves no resource")
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
