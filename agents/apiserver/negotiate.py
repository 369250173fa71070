"""Content negotiation: what the client accepts, and writing it."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiohttp import web

from agents.apiserver.config import GZIP_ABOVE_BYTES
from emulator.apimachinery.objects import dump_json
from emulator.apimachinery.status import not_acceptable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

JSON: Final = "application/json"
YAML: Final = "application/yaml"
PROTOBUF: Final = "application/vnd.kubernetes.protobuf"
PRODUCED: Final = (JSON, YAML)
_ANY = ("*/*", "application/*", "")


class Accepted(NamedTuple):
    """The form to answer in: ``kind`` is ``""``, ``Table``, ``PartialObjectMetadata[List]`` …"""

    media: str
    kind: str = ""
    group: str = ""
    version: str = ""


def _clauses(accept: str) -> Iterable[tuple[str, dict[str, str]]]:
    for clause in accept.split(","):
        media, *parameters = (part.strip() for part in clause.split(";"))
        pairs = (p.partition("=") for p in parameters)
        yield media.lower(), {k.strip(): v.strip() for k, _, v in pairs}


def accepted(
    accept: str, *, kinds: frozenset[tuple[str, str, str]] = frozenset(), stream: bool = False
) -> Accepted:
    """The first clause this server can produce; StatusError 406 if there is none.

    ``kinds`` are the conversions on offer as (kind, group, version).
    """
    wanted_kind = False
    for media, parameters in _clauses(accept):
        if media in _ANY:
            media = JSON
        if media == JSON and parameters.get("stream") == "watch":
            media = JSON
        if media not in PRODUCED or (stream and media != JSON):
            continue
        kind = parameters.get("as", "")
        if not kind:
            return Accepted(media)
        wanted_kind = True
        group, version = parameters.get("g", ""), parameters.get("v", "")
        if (kind, group, version) in kinds:
            return Accepted(media, kind, group, version)
    if wanted_kind or accept:
        raise not_acceptable((*PRODUCED, PROTOBUF) if not wanted_kind else PRODUCED)
    return Accepted(JSON)


def respond(
    body: Any,
    *,
    status: int = 200,
    media: str = JSON,
    request: web.BaseRequest | None = None,
    headers: Mapping[str, str] | None = None,
    warnings: Iterable[str] = (),
) -> web.Response:
    """An object (or ready bytes) in JSON or YAML, compressed if large and asked for."""
    if media == YAML:
        import yaml

        data = json.loads(body) if isinstance(body, bytes) else body
        raw = yaml.safe_dump(data, default_flow_style=False, sort_keys=True).encode()
    else:
        raw = body if isinstance(body, bytes) else dump_json(body) + b"\n"
    response = web.Response(body=raw, status=status, headers=headers)
    response.headers["Content-Type"] = media
    response.headers.setdefault("Cache-Control", "no-cache, private")
    for text in warnings:
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')
    if (
        request is not None
        and len(raw) > GZIP_ABOVE_BYTES
        and "gzip" in request.headers.get("Accept-Encoding", "")
    ):
        response.body = gzip.compress(raw, 1, mtime=0)
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Vary"] = "Accept-Encoding"
    return response
