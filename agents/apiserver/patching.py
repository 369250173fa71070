"""Applying the four kinds of patches to an object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from agents.apiserver.definitions import shapes
from emulator.apimachinery import mergepatch, strategic
from emulator.apimachinery.status import StatusError, bad_request, unsupported_media_type

if TYPE_CHECKING:
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import ResourceType

JSON_PATCH: Final = "application/json-patch+json"
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"
PATCH_TYPES: Final = (JSON_PATCH, MERGE, STRATEGIC, APPLY)
# Operations of one JSON patch (apiserver maxJSONPatchOperations).
MAX_JSON_PATCH_OPERATIONS: Final = 10_000


def apply_patch(media: str, data: bytes, old: Obj, resource: ResourceType) -> Obj:
    """The patched object.  StatusError 400, 415 or 422."""
    try:
        patch = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"error decoding patch: {error}") from None
    if media == JSON_PATCH:
        return _json_patch(patch, old)
    if not isinstance(patch, dict):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal "
            f"{'array' if isinstance(patch, list) else type(patch).__name__} into Go value of type "
            "map[string]interface {}"
        )
    if media == MERGE:
        merged: Obj = mergepatch.apply(old, patch)
        return merged
    if shapes().type(resource.schema) is None:
        raise unsupported_media_type(media, (JSON_PATCH, MERGE, APPLY))
    try:
        return strategic.apply(old, patch, resource.schema, shapes())
    except strategic.PatchError as error:
        raise bad_request(str(error)) from None


def _json_patch(patch: Any, old: Obj) -> Obj:
    import jsonpatch

    if not isinstance(patch, list):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type "
            "jsonpatch.Patch"
        )
    if len(patch) > MAX_JSON_PATCH_OPERATIONS:
        raise StatusError(
            413,
            "RequestEntityTooLarge",
            f"The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, "
            f"got {len(patch)}",
        )
    try:
        out = jsonpatch.JsonPatch(patch).apply(old)
    except (
        jsonpatch.JsonPatchException,
        jsonpatch.JsonPointerException,
        TypeError,
        KeyError,
    ) as error:
        raise StatusError(
            422,
            "Invalid",
            f"the server rejected our request due to an error in our request: {error}",
        ) from None
    if not isinstance(out, dict):
        raise bad_request("the patched object is not a JSON object")
    return out
