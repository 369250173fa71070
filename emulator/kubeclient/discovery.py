"""Which kinds an API server serves, by plain discovery."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.resource import Resource

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.kubeclient.rest import RestClient


class ServedResource(NamedTuple):
    """A kind in its group's preferred version and what can be done with its collection."""

    resource: Resource
    verbs: frozenset[str]


async def discover(client: RestClient) -> list[ServedResource]:
    """Every kind once, core group first; subresources are left out.

    Raises ApiError when discovery fails; a group that went meanwhile is left out.
    """
    found = _read(await _get(client, "/api/v1"), "", "v1")
    for group in (await _get(client, "/apis")).get("groups") or ():
        version = (group.get("preferredVersion") or {}).get("version", "")
        try:
            document = await _get(client, f"/apis/{group['name']}/{version}")
        except ApiError as error:
            if not error.is_not_found:
                raise
            continue
        found += _read(document, group["name"], version)
    return found


def deletable(served: Iterable[ServedResource]) -> list[Resource]:
    """Kinds that can be listed, watched and deleted; what a garbage collector cares for."""
    wanted = {"list", "watch", "delete"}
    return [one.resource for one in served if wanted <= one.verbs]


async def _get(client: RestClient, path: str) -> dict[str, Any]:
    answer = await client.raw("GET", path, headers={"Accept": "application/json"})
    try:
        document = json.loads(answer.body)
    except ValueError:
        document = None
    if answer.status != 200 or not isinstance(document, dict):
        raise ApiError(answer.status, "Discovery", f"discovery at {path} failed: {answer.status}")
    return document


def _read(document: dict[str, Any], group: str, version: str) -> list[ServedResource]:
    return [
        ServedResource(
            Resource(group, version, row["name"], row["kind"], bool(row.get("namespaced"))),
            frozenset(row.get("verbs") or ()),
        )
        for row in document.get("resources") or ()
        if "/" not in row["name"]
    ]
