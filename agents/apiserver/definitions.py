"""The shipped data files, each read when first needed so that start-up stays fast."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Final

from agents.apiserver.protobuf import Decoder
from emulator.apimachinery.shapes import Shapes

_DATA: Final = Path(__file__).parent / "data"


@functools.cache
def shapes() -> Shapes:
    """The types' fields and merge keys."""
    return Shapes.load((_DATA / "shapes.json.gz").read_bytes())


@functools.cache
def protobuf_decoder() -> Decoder:
    """The decoder of protobuf request bodies."""
    return Decoder(json.loads(gzip.decompress((_DATA / "protobuf.json.gz").read_bytes())))


@functools.cache
def openapi_v3(stem: str) -> bytes | None:
    """One gzip-compressed OpenAPI v3 document (``apis__apps__v1``), None if there is none."""
    path = _DATA / "openapi_v3" / f"{stem}.json.gz"
    return path.read_bytes() if path.is_file() else None


@functools.cache
def openapi_v2() -> bytes:
    """The gzip-compressed OpenAPI v2 document in gnostic's protobuf."""
    return (_DATA / "openapi_v2.pb.gz").read_bytes()
