"""Reading request bodies: JSON, YAML or protobuf into a checked dict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from agents.apiserver.config import MAX_BODY_BYTES
from agents.apiserver.definitions import protobuf_decoder, shapes
from agents.apiserver.negotiate import JSON, PROTOBUF, YAML
from emulator.apimachinery import strict
from emulator.apimachinery.gotext import quote
from emulator.apimachinery.status import (
    StatusError,
    bad_request,
    too_large,
    unsupported_media_type,
)
from emulator.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import web

    from emulator.apimachinery.objects import Obj

ACCEPTED: Final = (JSON, YAML, PROTOBUF)
VALIDATIONS: Final = ("Ignore", "Warn", "Strict")


def media_type(request: web.BaseRequest) -> str:
    """The body's media type without parameters; JSON where none is given."""
    given = request.headers.get("Content-Type", "")
    # aiohttp's clients label an unlabelled body so; so does kubectl scale.
    if given in ("", "application/octet-stream"):
        return JSON
    return given.partition(";")[0].strip().lower()


async def read(request: web.BaseRequest) -> bytes:
    """The whole body; StatusError 413 above the limit."""
    length = request.content_length
    if length is not None and length > MAX_BODY_BYTES:
        raise too_large(MAX_BODY_BYTES)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_large(MAX_BODY_BYTES)
        chunks.append(chunk)
    return b"".join(chunks)


def decode(data: bytes, media: str, schema: str, kind: str) -> Any:
    """A body as JSON data; StatusError 400 or 415."""
    if media == PROTOBUF:
        try:
            return protobuf_decoder().decode(data, schema)
        except WireError as error:
            raise bad_request(f"unable to decode the {kind} in the body: {error}") from None
    try:
        if media == YAML:
            import yaml

            try:
                loaded = yaml.safe_load(data)
            except (yaml.YAMLError, RecursionError) as error:
                raise bad_request(f"error converting YAML to JSON: {error}") from None
            return strict.load_json(json.dumps(loaded, default=str).encode())
        if media == JSON:
            return strict.load_json(data)
    except strict.DecodeError as error:
        raise bad_request(str(error)) from None
    raise unsupported_media_type(media, ACCEPTED)


def _nothing(_: Obj) -> Sequence[str]:
    return ()


def validation_mode(query: Any) -> str:
    """``fieldValidation`` of a request; Warn is the server's default for built-in kinds."""
    mode = query.get("fieldValidation") or "Warn"
    if mode not in VALIDATIONS:
        raise StatusError(
            422,
            "Invalid",
            f'CreateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: '
            f'"{mode}": supported values: "", "Ignore", "Strict", "Warn"',
        )
    return str(mode)


def dry_run(query: Any) -> bool:
    """Whether ``dryRun=All`` was asked for; StatusError 422 for other values."""
    values = query.getall("dryRun", [])
    for value in values:
        if value != "All":
            raise StatusError(
                422,
                "Invalid",
                f'CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: "{value}": '
                'supported values: "All"',
            )
    return bool(values)


def check_object(
    obj: Any,
    *,
    kind: str,
    group_version: str,
    schema: str,
    mode: str,
    unknown: Callable[[Obj], Sequence[str]] = _nothing,
) -> tuple[Obj, list[str]]:
    """Check kind, version and fields of a decoded object; return it and the warnings to send.

    ``unknown`` gives the paths of fields the object must not have, where no schema says it.
    Raises StatusError 400 as the real server does.
    """
    if not isinstance(obj, dict):
        raise bad_request(
            f"couldn't get version/kind; json parse error: json: cannot unmarshal "
            f"{'array' if isinstance(obj, list) else type(obj).__name__} into Go value of type "
            "struct { APIVersion string; Kind string }"
        )
    sent_version, sent_kind = obj.get("apiVersion") or group_version, obj.get("kind") or kind
    if sent_version != group_version:
        raise bad_request(
            f"the API version in the data ({sent_version}) does not match the expected API "
            f"version ({group_version})"
        )
    if sent_kind != kind:
        short = group_version.rpartition("/")[2]
        raise bad_request(
            f'{sent_kind} in version "{short}" cannot be handled as a {kind}: converting '
            f"({short}.{sent_kind}) to ({short}.{kind}): unknown conversion"
        )
    obj["kind"], obj["apiVersion"] = kind, group_version
    warnings = check_fields(
        obj, kind=kind, group_version=group_version, schema=schema, mode=mode, unknown=unknown
    )
    return obj, warnings


def check_fields(
    obj: Obj,
    *,
    kind: str,
    group_version: str,
    schema: str,
    mode: str,
    unknown: Callable[[Obj], Sequence[str]] = _nothing,
) -> list[str]:
    """Check fields against the schema; return the warnings.  StatusError 400."""
    short = group_version.rpartition("/")[2]
    prefix = f'{kind} in version "{short}" cannot be handled as a {kind}: '
    try:
        findings = strict.check(obj, schema, shapes(), strict=mode != "Ignore")
    except strict.DecodeError as error:
        raise bad_request(prefix + str(error)) from None
    if mode != "Ignore":
        findings += [f"unknown field {quote(path)}" for path in unknown(obj)]
    if findings and mode == "Strict":
        raise bad_request(f"{prefix}strict decoding error: {', '.join(findings)}")
    return findings
