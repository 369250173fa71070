"""What an API server needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from etcd.core.access import NO_ACCESS, EtcdAccess

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from emulator.apimachinery.objects import Obj

# The real server's default of --max-request-body-bytes (3 MiB).
MAX_BODY_BYTES: Final = 3 * 1024 * 1024
# Bodies above this are compressed if the client asks (apiserver responsewriters, 128 KiB).
GZIP_ABOVE_BYTES: Final = 128 * 1024
# How long a read waits for the cache to reach a revision (cacher blockTimeout).
FRESH_TIMEOUT_S: Final = 3.0
# Events of one resource a resumed watch may go back to (watchCache default lower bound is 100).
WATCH_RING: Final = 1024
# Events one slow watcher may fall behind before its stream is ended; it lists again.
MAX_WATCH_BACKLOG: Final = 10_000
# Between two bookmarks of an idle watch (cacher bookmarkFrequency).
BOOKMARK_PERIOD_S: Final = 60.0
# How often a silent watch looks whether its client is still there.
WATCH_LIVENESS_S: Final = 15.0
# A watch without timeoutSeconds lasts this long to twice this long (--min-request-timeout).
MIN_WATCH_S: Final = 1800.0
# Consistent lists kept for their next page; each holds references only.
MAX_LIST_SNAPSHOTS: Final = 64
# A patch is tried again this often when somebody else was faster (maxRetryWhenPatchConflicts).
PATCH_RETRIES: Final = 5
# How long events are kept (--event-ttl).
EVENT_TTL_S: Final = 3600


@dataclass(frozen=True, slots=True)
class UserInfo:
    """Who a request comes from."""

    name: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StorageRoot:
    """Where custom resources of a group are kept, if not below ``/registry/``.

    ``root`` is a key prefix that ends in a slash, ``<root><plural>/[<namespace>/]<name>`` an
    object's key and ``api_version`` what its stored form says.
    """

    root: str
    api_version: str


class Verdict(NamedTuple):
    """What the owner of a group of custom resources says of an object.

    ``unknown`` are paths (keys and indexes) of fields the kind does not have, ``errors`` are
    (field, value, reason).
    """

    unknown: tuple[tuple[str | int, ...], ...] = ()
    errors: tuple[tuple[str, object, str], ...] = ()
    warnings: tuple[str, ...] = ()


class Admission(Protocol):
    """Judges an object about to be stored, in its stored form; pure."""

    def __call__(self, new: Obj, old: Obj | None, others: Iterable[Obj]) -> Verdict:
        """``old`` is what it replaces, ``others`` are all of its kind."""


@dataclass(frozen=True, slots=True)
class ApiServerConfig:
    """Addresses are text.  ``tls_cert``, ``tls_key``, ``client_ca`` and ``kubelet_ca`` are paths.

    ``advertise_ip`` and ``advertise_port`` are the emulated address behind the ``kubernetes``
    Service.  ``tokens`` maps bearer tokens to users; a client certificate's CN is the user and its
    O the groups.  Every authenticated user may do everything.  ``definitions`` are
    CustomResourceDefinitions that are there from the start, ``storage_roots`` says by group whose
    objects live where another program keeps them, ``admissions`` who judges them before that
    program has to.
    """

    listen_host: str
    listen_port: int
    etcd_endpoints: tuple[str, ...]
    tls_cert: str
    tls_key: str
    client_ca: str
    service_cidr: str
    advertise_ip: str
    advertise_port: int
    kubelet_token: str = field(repr=False)
    kubelet_ca: str
    etcd_access: EtcdAccess = NO_ACCESS
    tokens: Mapping[str, UserInfo] = field(default_factory=dict, repr=False)
    node_port_range: tuple[int, int] = (30000, 32767)
    version: str = "v1.32.5"
    definitions: tuple[Mapping[str, Any], ...] = ()
    storage_roots: Mapping[str, StorageRoot] = field(default_factory=dict)
    admissions: Mapping[str, Admission] = field(default_factory=dict)
