"""The tree of the v2 API: requests change it, events tell how.  No IO, no clock.

Every change has the next index and exactly one event.  Times are Unix nanoseconds that come in with
the operation, so an operation replayed from the log gives the same tree and the same events.  As in
a real etcd the first indexes belong to the cluster itself (``members``), which live beside the keys
and which nobody sees; here only their indexes are taken.

Source: etcd 3.4 etcdserver/api/v2store/{store,node,ttl_key_heap}.go, etcdserver/apply_v2.go.
"""

from __future__ import annotations

import enum
import heapq
from typing import TYPE_CHECKING, Final, NamedTuple

from etcd.core.v2 import errors
from etcd.core.v2.errors import V2Error
from etcd.core.v2.hub import Event, Extern, Hub, Notice, Watcher
from etcd.core.v2.paths import clean, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etcd.core.v2.hub import Listener

SECOND_NS: Final = 1_000_000_000
# store.go minExpireTime, 2000-01-01: what would expire before never expires.
MIN_EXPIRATION_NS: Final = 946_684_800 * SECOND_NS
# What a real member's first start writes: its peer URLs, its client URLs, the cluster's version.
FIRST_START_INDEXES: Final = 3
# What every later start writes: its client URLs.
RESTART_INDEXES: Final = 1


class Op(enum.IntEnum):
    """What an operation does."""

    SET = 1
    CREATE = 2
    CREATE_IN_ORDER = 3
    UPDATE = 4
    COMPARE_AND_SWAP = 5
    DELETE = 6
    COMPARE_AND_DELETE = 7
    EXPIRE = 8
    PUBLISH = 9


class Operation(NamedTuple):
    """One change as it is asked for and logged; what an Op does not need stays at its default."""

    op: Op
    # Unix nanoseconds when it was asked.
    now_ns: int
    path: str = "/"
    value: str = ""
    dir: bool = False
    recursive: bool = False
    refresh: bool = False
    # None: no TTL.  UPDATE and COMPARE_AND_SWAP take any time, the others none before 2000.
    expires_ns: int | None = None
    prev_value: str = ""
    # 0: not compared.  PUBLISH: how many indexes are taken.
    prev_index: int = 0


class Node:
    """A file (``children`` None) or a directory."""

    __slots__ = ("children", "created", "expires_ns", "modified", "parent", "path", "value")

    def __init__(self, path: str, parent: Node | None, index: int) -> None:
        self.path = path
        self.parent = parent
        self.created = self.modified = index
        self.value = ""
        self.children: dict[str, Node] | None = None
        self.expires_ns: int | None = None

    @property
    def name(self) -> str:
        return self.path[self.path.rindex("/") + 1 :]

    @property
    def hidden(self) -> bool:
        """Whether listings leave it out."""
        return self.name.startswith("_")

    def extern(self, now_ns: int) -> Extern:
        """Return the node as events show it."""
        expires_ns = self.expires_ns
        left = 0 if expires_ns is None else ttl_s(expires_ns, now_ns)
        value = self.value if self.children is None else None
        key = self.path if self.path != "/" else ""
        return Extern(key, value, value is None, expires_ns or 0, left, self.modified, self.created)


def ttl_s(expires_ns: int, now_ns: int) -> int:
    """Whole seconds left, rounded as etcd rounds them: up before the time, to zero after it."""
    left_ns = expires_ns - now_ns
    return -(-left_ns // SECOND_NS)


STATISTICS: Final = (
    "getsSuccess",
    "getsFail",
    "setsSuccess",
    "setsFail",
    "deleteSuccess",
    "deleteFail",
    "updateSuccess",
    "updateFail",
    "createSuccess",
    "createFail",
    "compareAndSwapSuccess",
    "compareAndSwapFail",
    "compareAndDeleteSuccess",
    "compareAndDeleteFail",
    "expireCount",
)
_COUNTERS: Final = {
    Op.SET: "sets",
    Op.CREATE: "create",
    Op.CREATE_IN_ORDER: "create",
    Op.UPDATE: "update",
    Op.COMPARE_AND_SWAP: "compareAndSwap",
    Op.DELETE: "delete",
    Op.COMPARE_AND_DELETE: "compareAndDelete",
}


class V2Store:
    """See the module."""

    def __init__(self) -> None:
        self.index = 0
        self.root = Node("/", None, 0)
        self.root.children = {}
        self.hub = Hub()
        self.statistics: dict[str, int] = dict.fromkeys(STATISTICS, 0)
        self._notices: list[Notice] = []
        # (expiration, creation number of the entry, node); stale entries are met and dropped.
        self._expiring: list[tuple[int, int, Node]] = []
        self._entries = 0

    # Reading -------------------------------------------------------------------------------

    def get(self, path: str) -> Node:
        """Return a node; V2Error 100 or 104 if there is none."""
        try:
            node = self.find(path)
        except V2Error:
            self.statistics["getsFail"] += 1
            raise
        self.statistics["getsSuccess"] += 1
        return node

    def find(self, path: str) -> Node:
        """``get`` without being counted."""
        node = self.root
        for name in parts_of(clean(path)):
            if node.children is None:
                raise V2Error(errors.NOT_DIR, node.path, self.index)
            child = node.children.get(name)
            if child is None:
                raise V2Error(errors.KEY_NOT_FOUND, f"{node.path.rstrip('/')}/{name}", self.index)
            node = child
        return node

    def watch(
        self, listener: Listener, path: str, *, recursive: bool, stream: bool, since: int
    ) -> Watcher:
        """Wait for the first change at or after index ``since`` (0: from now on).

        Raises V2Error 401 for an index the history no longer has.
        """
        watcher = Watcher(
            listener,
            clean(path),
            recursive=recursive,
            stream=stream,
            since=since or self.index + 1,
        )
        self.hub.watch(watcher, self.index)
        return watcher

    # Changing ------------------------------------------------------------------------------

    def apply(self, operation: Operation) -> Event | None:
        """Run an operation; return its event (None for EXPIRE and PUBLISH).

        Raises V2Error if it cannot be done; then nothing has changed but a counter.  Tell the
        watchers of ``take_notices`` once it is durable.
        """
        op = operation.op
        if op is Op.EXPIRE:
            self._expire(operation.now_ns)
            return None
        if op is Op.PUBLISH:
            self._publish(operation.prev_index)
            return None
        counter = _COUNTERS[op]
        try:
            event = _APPLY[op](self, operation)
        except V2Error:
            self.statistics[f"{counter}Fail"] += 1
            raise
        self.statistics[f"{counter}Success"] += 1
        self._record(event)
        return event

    def take_notices(self) -> list[Notice]:
        """Return and forget whom the last operations concern."""
        notices, self._notices = self._notices, []
        return notices

    def _record(self, event: Event) -> None:
        self.hub.history.append(event)
        if not event.refresh:
            self._notices.append(Notice(event, None))

    def _set(self, operation: Operation) -> Event:
        node: Node | None = None
        try:
            node = self.find(operation.path)
        except V2Error as error:
            if error.code != errors.KEY_NOT_FOUND or operation.refresh:
                raise
        value = operation.value
        if operation.refresh:
            assert node is not None, "a missing node was refused above"
            value = node.value
        previous = node.extern(operation.now_ns) if node is not None else None
        event = self._put(operation, "set", operation.path, value, replace=True)
        return event._replace(previous=previous, refresh=operation.refresh)

    def _create(self, operation: Operation) -> Event:
        path = operation.path
        if operation.op is Op.CREATE_IN_ORDER:
            path = f"{path}/{self.index + 1:020d}"
        return self._put(operation, "create", path, operation.value, replace=False)

    def _put(
        self, operation: Operation, action: str, path: str, value: str, *, replace: bool
    ) -> Event:
        path = clean(path)
        if path == "/":
            raise V2Error(errors.ROOT_READ_ONLY, "/", self.index)
        expires_ns = operation.expires_ns
        if expires_ns is not None and expires_ns < MIN_EXPIRATION_NS:
            expires_ns = None
        names = parts_of(path)
        directory = self._directory(names[:-1])
        children = directory.children
        assert children is not None, "_directory gives directories"
        old = children.get(names[-1])
        if old is not None:
            if not replace:
                raise V2Error(errors.NODE_EXIST, path, self.index)
            if old.children is not None:
                raise V2Error(errors.NOT_FILE, path, self.index)
            self._unlink(old)
        self.index += 1
        node = Node(path, directory, self.index)
        if operation.dir:
            node.children = {}
        else:
            node.value = value
        children[names[-1]] = node
        self._set_expiration(node, expires_ns)
        return Event(action, node.extern(operation.now_ns), None)

    def _directory(self, names: list[str]) -> Node:
        """Return a directory, made with its parents where they are missing."""
        node = self.root
        for name in names:
            assert node.children is not None, "the loop stops at files"
            child = node.children.get(name)
            if child is None:
                child = Node(f"{node.path.rstrip('/')}/{name}", node, self.index + 1)
                child.children = {}
                node.children[name] = child
            elif child.children is None:
                raise V2Error(errors.NOT_DIR, child.path, self.index)
            node = child
        return node

    def _update(self, operation: Operation) -> Event:
        path = self._writable(operation.path)
        node = self.find(path)
        is_dir = node.children is not None
        if is_dir and operation.value:
            raise V2Error(errors.NOT_FILE, path, self.index)
        value = node.value if operation.refresh else operation.value
        previous = node.extern(operation.now_ns)
        self.index += 1
        if not is_dir:
            node.value, node.modified = value, self.index
        self._set_expiration(node, operation.expires_ns)
        after = node.extern(operation.now_ns)._replace(modified=self.index)
        return Event("update", after, previous, operation.refresh)

    def _swap(self, operation: Operation) -> Event:
        path = self._writable(operation.path)
        node = self._comparable(operation, path)
        previous = node.extern(operation.now_ns)
        self.index += 1
        node.value = node.value if operation.refresh else operation.value
        node.modified = self.index
        self._set_expiration(node, operation.expires_ns)
        after = node.extern(operation.now_ns)
        return Event("compareAndSwap", after, previous, operation.refresh)

    def _writable(self, path: str) -> str:
        path = clean(path)
        if path == "/":
            raise V2Error(errors.ROOT_READ_ONLY, "/", self.index)
        return path

    def _comparable(self, operation: Operation, path: str) -> Node:
        """Return the file an operation compares with, V2Error if it is not as expected."""
        node = self.find(path)
        if node.children is not None:
            raise V2Error(errors.NOT_FILE, "" if path == "/" else path, self.index)
        value, index = operation.prev_value, operation.prev_index
        values = f"[{value} != {node.value}]" if value and node.value != value else ""
        indexes = f"[{index} != {node.modified}]" if index and node.modified != index else ""
        if values or indexes:
            cause = f"{values} {indexes}" if values and indexes else values or indexes
            raise V2Error(errors.TEST_FAILED, cause, self.index)
        return node

    def _delete(self, operation: Operation) -> Event:
        path = self._writable(operation.path)
        node = self.find(path)
        if node.children is not None:
            if not (operation.dir or operation.recursive):
                raise V2Error(errors.NOT_FILE, path, self.index)
            if node.children and not operation.recursive:
                raise V2Error(errors.DIR_NOT_EMPTY, path, self.index)
        return self._remove(node, "delete", operation.now_ns)

    def _compare_and_delete(self, operation: Operation) -> Event:
        node = self._comparable(operation, clean(operation.path))
        return self._remove(node, "compareAndDelete", operation.now_ns)

    def _remove(self, node: Node, action: str, now_ns: int) -> Event:
        """Remove a node and what is below it; watchers of all of it are to be told."""
        self.index += 1
        previous = node.extern(now_ns)
        after = Extern(node.path, None, previous.dir, 0, 0, self.index, node.created)
        event = Event(action, after, previous)
        # Children first, as etcd tells their watchers.
        order: list[Node] = []
        stack = [node]
        while stack:
            top = stack.pop()
            order.append(top)
            if top.children is not None:
                stack += top.children.values()
        for gone in reversed(order):
            self._notices.append(Notice(event, gone.path))
            gone.expires_ns = None
        self._unlink(node)
        return event

    @staticmethod
    def _unlink(node: Node) -> None:
        parent = node.parent
        assert parent is not None, "the root is never removed"
        assert parent.children is not None, "a parent is a directory"
        del parent.children[node.name]
        node.expires_ns = None

    def _publish(self, indexes: int) -> None:
        """Take indexes for what a member writes about itself when it starts."""
        for _ in range(indexes):
            self.index += 1
            node = Extern("", None, False, 0, 0, self.index, self.index)
            self.hub.history.append(Event("set", node, None))
            self.statistics["setsSuccess"] += 1

    # Expiration ----------------------------------------------------------------------------

    def _set_expiration(self, node: Node, expires_ns: int | None) -> None:
        if expires_ns == node.expires_ns:
            return
        node.expires_ns = expires_ns
        if expires_ns is not None:
            self._entries += 1
            heapq.heappush(self._expiring, (expires_ns, self._entries, node))

    def next_expiration_ns(self) -> int | None:
        """When the next node expires, in Unix nanoseconds; None if none does."""
        heap = self._expiring
        while heap:
            at_ns, _, node = heap[0]
            if node.expires_ns == at_ns:
                return at_ns
            heapq.heappop(heap)
        return None

    def _expire(self, now_ns: int) -> None:
        """Remove every node whose time has come; each is an event of its own."""
        while (at_ns := self.next_expiration_ns()) is not None and at_ns <= now_ns:
            node = heapq.heappop(self._expiring)[2]
            event = self._remove(node, "expire", now_ns)
            self.statistics["expireCount"] += 1
            self._record(event)

    # Recovery ------------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        """Yield every node but the root, parents before their children."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node is not self.root:
                yield node
            if node.children is not None:
                stack += reversed(node.children.values())

    def restore_node(self, path: str, value: str | None, expires_ns: int | None, *, modified: int,
                     created: int) -> None:  # fmt: skip
        """Add a node of a snapshot; its parent came before."""
        parent = self.find(path[: path.rindex("/")] or "/")
        assert parent.children is not None, "the parent of a stored node is a directory"
        node = Node(path, parent, created)
        node.modified = modified
        if value is None:
            node.children = {}
        else:
            node.value = value
        parent.children[node.name] = node
        self._set_expiration(node, expires_ns)


_APPLY: Final = {
    Op.SET: V2Store._set,
    Op.CREATE: V2Store._create,
    Op.CREATE_IN_ORDER: V2Store._create,
    Op.UPDATE: V2Store._update,
    Op.COMPARE_AND_SWAP: V2Store._swap,
    Op.DELETE: V2Store._delete,
    Op.COMPARE_AND_DELETE: V2Store._compare_and_delete,
}
