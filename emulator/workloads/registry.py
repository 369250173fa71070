"""Images: names resolved to programs, default command lines, files and sizes (pure).

There is no download: an image exists when a definition's pattern matches its name.  Digests are
derived from the name, so every node sees the same one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from emulator.errors import PodwireError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.workloads.context import Program

DEFAULT_REGISTRY = "docker.io"
# Grammar of distribution/reference, without the port's range.
_REFERENCE = re.compile(
    r"^(?P<name>(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?$"
)
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)")


class ImageNotFoundError(PodwireError):
    """No such image; the text is containerd's."""


class Reference(NamedTuple):
    """A normalised image name: ``docker.io/library/nginx``, tag, digest."""

    repository: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Normalise as docker does; UsageError with the kubelet's InvalidImageName text."""
        match = _REFERENCE.match(text)
        if match is None:
            raise UsageError(
                f'Failed to apply default image tag "{text}": couldn\'t parse image name '
                f'"{text}": invalid reference format'
            )
        name = match["name"]
        first, slash, _ = name.partition("/")
        if not slash:
            name = f"{DEFAULT_REGISTRY}/library/{name}"
        elif "." not in first and ":" not in first and first != "localhost":
            name = f"{DEFAULT_REGISTRY}/{name}"
        digest = match["digest"] or ""
        tag = match["tag"] or ("" if digest else "latest")
        return cls(name, tag, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class Definition:
    """What a family of images holds.

    ``repository`` is a regular expression over the normalised repository, ``style`` the flavour
    of its commands: "busybox", "gnu" (Debian-like) or "" (no shell inside, as distroless).
    ``command`` runs as PID 1 unless the pod says otherwise; a first word found in ``programs`` is
    run natively, any other is looked up among the shell's commands.
    """

    repository: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    programs: Mapping[str, Program]
    size_bytes: int
    style: str
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    working_dir: str = "/"
    tags: str = r".*"


@dataclass(frozen=True, slots=True)
class Image:
    """One image, resolved."""

    reference: Reference
    image_id: str
    definition: Definition

    @property
    def repo_digest(self) -> str:
        """``docker.io/library/nginx@sha256:…``, as ``status.containerStatuses[].imageID``."""
        return f"{self.reference.repository}@{self.image_id}"

    @property
    def env(self) -> dict[str, str]:
        """The image's environment, the tag available as ``{tag}`` in its values."""
        return {
            name: value.replace("{tag}", version_of(self.reference.tag))
            for name, value in self.definition.env.items()
        }


def version_of(tag: str) -> str:
    """The version a tag states: ``1.7.9`` of ``1.7.9-alpine``; empty for ``latest``."""
    match = _VERSION.match(tag)
    return match[1] if match else ""


class ImageRegistry:
    """Every image a cluster can pull."""

    def __init__(self, definitions: tuple[Definition, ...]) -> None:
        self._definitions = definitions

    def resolve(self, name: str) -> Image:
        """Return the image; UsageError for a malformed name, ImageNotFoundError for an unknown."""
        reference = Reference.parse(name)
        for definition in self._definitions:
            if re.fullmatch(definition.repository, reference.repository) and re.fullmatch(
                definition.tags, reference.tag
            ):
                digest = hashlib.sha256(f"{reference.repository}:{reference.tag}".encode())
                image_id = reference.digest or f"sha256:{digest.hexdigest()}"
                return Image(reference, image_id, definition)
        repository = reference.repository
        registry, _, path = repository.partition("/")
        host = "registry-1.docker.io" if registry == DEFAULT_REGISTRY else registry
        if registry == DEFAULT_REGISTRY:
            cause = (
                "pull access denied, repository does not exist or may require authorization: "
                "server message: insufficient_scope: authorization failed"
            )
            raise ImageNotFoundError(
                f'failed to pull and unpack image "{reference}": failed to resolve reference '
                f'"{reference}": {cause}'
            )
        raise ImageNotFoundError(
            f'failed to pull and unpack image "{reference}": failed to resolve reference '
            f'"{reference}": {host}/{path}: not found'
        )

    def patterns(self) -> tuple[str, ...]:
        """The repositories known, as patterns, in order of definition."""
        return tuple(definition.repository for definition in self._definitions)
