"""Resources as YAML and JSON, in and out (pure)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import yaml

from agents.calico.known_fields import unknown_fields
from agents.calico.resources import API_VERSION, KINDS
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.calico.resources import Resource

_STRING: Final = "tag:yaml.org,2002:str"
# Cluster-specific metadata that ``get --export`` leaves out.
_OF_ONE_CLUSTER = ("namespace", "uid", "resourceVersion", "creationTimestamp")


def read_documents(text: str) -> list[Resource]:
    """Every resource of a file: YAML documents, lists of resources, or JSON.

    Raises UsageError that says which document is wrong and how.
    """
    found: list[Resource] = []
    try:
        for number, document in enumerate(list(yaml.safe_load_all(text)), 1):
            if document is not None:
                found += _flatten(document, f"document {number}")
    except yaml.YAMLError as error:
        raise UsageError(f"yaml: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError("yaml: nested too deeply") from None
    return found


def _flatten(value: Any, where: str) -> list[Resource]:
    if isinstance(value, list):
        return [each for item in value for each in _flatten(item, where)]
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a resource, found {type(value).__name__}")
    kind = value.get("kind")
    if not isinstance(kind, str) or not kind:
        raise UsageError(f"{where}: no resource kind is given")
    version = value.get("apiVersion")
    if version != API_VERSION:
        raise UsageError(_unknown_type(where, kind, version))
    if kind.endswith("List") and isinstance(value.get("items"), list):
        inherited = {"kind": kind.removesuffix("List"), "apiVersion": version}
        items = [item for item in value["items"] if isinstance(item, dict)]
        return [each for item in items for each in _flatten({**inherited, **item}, where)]
    if kind not in KINDS:
        raise UsageError(_unknown_type(where, kind, version))
    check_fields(value, where)
    return [value]


def _unknown_type(where: str, kind: str, version: object) -> str:
    return f"{where}: Unknown resource type ({kind}) and/or version ({version})"


def check_fields(resource: Resource, where: str) -> None:
    """UsageError for a resource without a name, or with fields its kind does not have.

    So does the strict decoder.
    """
    metadata = resource.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise UsageError(f"{where}: {resource.get('kind')}: metadata.name is missing")
    unknown = unknown_fields(resource)
    if unknown:
        names = ", ".join(f'"{name}"' for name in unknown)
        fields = "fields" if len(unknown) > 1 else "field"
        raise UsageError(
            f"{where}: {resource.get('kind')} {metadata['name']}: unknown {fields} {names}"
        )


def as_list(kind: str, resources: Sequence[Resource]) -> Resource:
    """The list object of what ``get KIND`` found."""
    newest = max((int(each["metadata"].get("resourceVersion", 0)) for each in resources), default=0)
    return {
        "kind": f"{kind}List",
        "apiVersion": API_VERSION,
        "metadata": {"resourceVersion": str(newest)},
        "items": list(resources),
    }


def exported(resource: Resource) -> Resource:
    """A resource without what only means something in its own cluster."""
    metadata = {
        key: value for key, value in resource["metadata"].items() if key not in _OF_ONE_CLUSTER
    }
    return {**resource, "metadata": {**metadata, "creationTimestamp": None}}


def to_yaml(resources: Sequence[Resource]) -> str:
    """One resource, or a list of several, as Go's encoder writes them."""
    value = resources[0] if len(resources) == 1 else list(resources)
    return yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=False,
        sort_keys=True,
        allow_unicode=True,
        width=float("inf"),
    )


class _Dumper(yaml.SafeDumper):
    """Double quotes where a text would be read as something else, blocks for texts of lines."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    style = None if plain == _STRING else '"'
    return dumper.represent_scalar(_STRING, text, style="|" if "\n" in text else style)


_Dumper.add_representer(str, _text)


def to_json(resources: Sequence[Resource]) -> str:
    """One resource, or a list of several."""
    value = resources[0] if len(resources) == 1 else list(resources)
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
