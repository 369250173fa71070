"""bbolt database files, the format of etcd's snapshots: a writer that streams, and a reader.

A file is a sequence of pages of 4 KiB.  Pages 0 and 1 are copies of the meta page, which names the
root bucket's page; a bucket is a B+ tree of branch and leaf pages; a page that does not suffice is
followed by overflow pages.  The root bucket's values are the headers of the other buckets.

The meta pages come first but name the last page, so writing takes two passes: ``plan`` goes through
the sizes of the pairs, ``Layout.pages`` through the pairs themselves.  Neither holds more than a
page's pairs at a time.

Source: go.etcd.io/bbolt page.go, bucket.go, node.go, db.go (format version 2).
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, NamedTuple

from etcd.core.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

PAGE_BYTES = 4096
MAGIC = 0xED0CDAED
VERSION = 2
_BRANCH, _LEAF, _META, _FREELIST = 0x01, 0x02, 0x04, 0x10
# Flag of a leaf element whose value is a bucket.
_IS_BUCKET = 0x01
# bbolt's limit (db.go: MaxValueSize).
MAX_VALUE_BYTES = (1 << 31) - 2
# A bucket that is one leaf of at most this size lives in its header's value (bucket.go inlineable).
_MAX_INLINE_BYTES = PAGE_BYTES // 4
# Pairs gone through between two yields of ``plan``: about a millisecond.
_PLAN_SLICE = 1000

_PAGE = struct.Struct("<QHHI")  # id, flags, count, overflow
_BUCKET = struct.Struct("<QQ")  # root page, sequence
# magic, version, page size, flags, root page, sequence, freelist page, pages, transaction
_META_BODY = struct.Struct("<IIIIQQQQQ")
_LEAF_ELEMENT = struct.Struct("<IIII")  # flags, position, key size, value size
_BRANCH_ELEMENT = struct.Struct("<IIQ")  # position, key size, page
_HEAD = _PAGE.size
_ELEMENT = _LEAF_ELEMENT.size


class Bucket(NamedTuple):
    """A bucket to write: both callables give its keys in ascending order.

    ``sizes`` gives (key, length of the value), ``pairs`` the values themselves.
    """

    name: bytes
    sizes: Callable[[], Iterable[tuple[bytes, int]]]
    pairs: Callable[[], Iterable[tuple[bytes, bytes]]]

    @classmethod
    def of(cls, name: bytes, content: dict[bytes, bytes]) -> Bucket:
        """Return a small bucket."""
        pairs = sorted(content.items())
        return cls(name, lambda: [(key, len(value)) for key, value in pairs], lambda: pairs)


class _Branch(NamedTuple):
    page: int
    overflow: int
    children: Sequence[tuple[bytes, int]]  # first key, page


class _Tree(NamedTuple):
    """Where a bucket's pages are; ``counts`` and ``overflows`` have an entry for each leaf."""

    bucket: Bucket
    first_page: int
    counts: array[int]
    overflows: array[int]
    branches: list[_Branch]
    root: int
    root_overflow: int
    # Bytes of the last leaf.
    last_leaf_bytes: int

    def header(self) -> bytes:
        return _BUCKET.pack(self.root, 0)


class Layout(NamedTuple):
    """A planned file."""

    trees: list[_Tree]
    root: list[tuple[bytes, bytes]]
    root_page: int
    page_count: int

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        return self.page_count * PAGE_BYTES

    def pages(self) -> Iterator[bytes]:
        """Yield the file's bytes, one or more whole pages at a time."""
        yield _meta_page(0, self, 1) + _meta_page(1, self, 0)
        yield _pad(_PAGE.pack(2, _FREELIST, 0, 0))
        for tree in self.trees:
            yield from _leaf_pages(tree)
            for branch in tree.branches:
                yield _branch_page(branch)
        yield _leaf_page(self.root_page, self.root, _IS_BUCKET)


# Writing -----------------------------------------------------------------------------------


def plan(buckets: Iterable[Bucket]) -> Generator[None, None, Layout]:
    """Lay a file out; resume the generator until it returns the layout."""
    trees: list[_Tree] = []
    root: list[tuple[bytes, bytes]] = []
    page = 3
    for bucket in sorted(buckets):
        tree = yield from _plan_tree(bucket, page)
        inline = _inline(tree)
        if inline is not None:
            root.append((bucket.name, inline))
            continue
        trees.append(tree)
        root.append((bucket.name, tree.header()))
        page = tree.root + 1 + tree.root_overflow
    size = _HEAD + sum(_ELEMENT + len(key) + len(value) for key, value in root)
    return Layout(trees, root, page, page + 1 + _overflow(size))


def _overflow(size: int) -> int:
    """Return how many pages follow the first one of so many bytes."""
    return (size - 1) // PAGE_BYTES


def _plan_tree(bucket: Bucket, first_page: int) -> Generator[None, None, _Tree]:
    counts, overflows = array("I"), array("I")
    children: list[tuple[bytes, int]] = []
    page, count, used, first = first_page, 0, _HEAD, b""
    until_yield = _PLAN_SLICE
    for key, length in bucket.sizes():
        need = _ELEMENT + len(key) + length
        if count and used + need > PAGE_BYTES:
            overflow = _overflow(used)
            counts.append(count)
            overflows.append(overflow)
            children.append((first, page))
            page += 1 + overflow
            count, used = 0, _HEAD
        if not count:
            first = key
        count += 1
        used += need
        until_yield -= 1
        if not until_yield:
            until_yield = _PLAN_SLICE
            yield
    counts.append(count)
    overflows.append(_overflow(used))
    children.append((first, page))
    page += 1 + overflows[-1]
    branches: list[_Branch] = []
    while len(children) > 1:
        parents: list[tuple[bytes, int]] = []
        for group in _branch_groups(children):
            size = _HEAD + sum(_ELEMENT + len(key) for key, _ in group)
            branches.append(_Branch(page, _overflow(size), group))
            parents.append((group[0][0], page))
            page += 1 + branches[-1].overflow
        children = parents
    root_overflow = branches[-1].overflow if branches else overflows[-1]
    root = children[0][1]
    return _Tree(bucket, first_page, counts, overflows, branches, root, root_overflow, used)


def _branch_groups(children: list[tuple[bytes, int]]) -> list[list[tuple[bytes, int]]]:
    """Cut a level into branch pages of at least two children each."""
    groups: list[list[tuple[bytes, int]]] = []
    used = PAGE_BYTES
    for child in children:
        need = _ELEMENT + len(child[0])
        if not groups or (used + need > PAGE_BYTES and len(groups[-1]) >= 2):
            groups.append([])
            used = _HEAD
        groups[-1].append(child)
        used += need
    if len(groups) > 1 and len(groups[-1]) == 1:
        last = groups.pop()
        if len(groups[-1]) > 2:
            groups.append([groups[-1].pop(), *last])
        else:
            groups[-1] += last
    return groups


def _inline(tree: _Tree) -> bytes | None:
    """Return the header of a bucket that is small enough to live in it."""
    if len(tree.counts) > 1 or tree.last_leaf_bytes > _MAX_INLINE_BYTES:
        return None
    return _BUCKET.pack(0, 0) + _leaf_bytes(0, list(tree.bucket.pairs()), 0)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % PAGE_BYTES)


def _fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def _meta_page(page: int, layout: Layout, transaction: int) -> bytes:
    body = _META_BODY.pack(
        *(MAGIC, VERSION, PAGE_BYTES, 0, layout.root_page, 0, 2, layout.page_count, transaction)
    )
    return _pad(_PAGE.pack(page, _META, 0, 0) + body + _fnv1a(body).to_bytes(8, "little"))


def _leaf_bytes(page: int, pairs: list[tuple[bytes, bytes]], flags: int) -> bytes:
    count = len(pairs)
    at = count * _ELEMENT
    numbers: list[int] = []
    data: list[bytes] = []
    size = _HEAD + at
    for key, value in pairs:
        # Positions count from the element itself.
        numbers += (flags, at, len(key), len(value))
        at += len(key) + len(value) - _ELEMENT
        size += len(key) + len(value)
        data += (key, value)
    head = _PAGE.pack(page, _LEAF, count, _overflow(size))
    return head + struct.pack(f"<{4 * count}I", *numbers) + b"".join(data)


def _leaf_page(page: int, pairs: list[tuple[bytes, bytes]], flags: int) -> bytes:
    return _pad(_leaf_bytes(page, pairs, flags))


def _leaf_pages(tree: _Tree) -> Iterator[bytes]:
    pairs = iter(tree.bucket.pairs())
    page = tree.first_page
    for count, overflow in zip(tree.counts, tree.overflows, strict=True):
        data = _leaf_page(page, [next(pairs) for _ in range(count)], 0)
        assert len(data) == (1 + overflow) * PAGE_BYTES, "sizes and pairs of a bucket differ"
        yield data
        page += 1 + overflow


def _branch_page(branch: _Branch) -> bytes:
    count = len(branch.children)
    at = count * _ELEMENT
    parts = [_PAGE.pack(branch.page, _BRANCH, count, branch.overflow)]
    for key, page in branch.children:
        parts.append(_BRANCH_ELEMENT.pack(at, len(key), page))
        at += len(key) - _ELEMENT
    parts += (key for key, _ in branch.children)
    return _pad(b"".join(parts))


# Reading -----------------------------------------------------------------------------------


class Database:
    """A database file's bytes (bytes, memoryview or mmap); raises CorruptionError, naming it."""

    def __init__(self, data: bytes | memoryview, name: str) -> None:
        self._data = memoryview(data)
        self._name = name
        metas = [meta for meta in map(self._meta, self._meta_offsets()) if meta is not None]
        if not metas:
            raise CorruptionError(
                f"{name}: no valid bbolt meta page; it is not a snapshot, or it is damaged"
            )
        _, self._page_bytes, root, self._page_count = max(metas)
        if self._page_count * self._page_bytes > len(self._data):
            raise self._damaged(
                f"{self._page_count} pages of {self._page_bytes} bytes do not fit in "
                f"{len(self._data)}; the file was cut"
            )
        self._buckets = {key: value for flags, key, value in self._walk(root) if flags & _IS_BUCKET}

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the names of the buckets."""
        return iter(self._buckets)

    def bucket(self, name: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield a bucket's pairs in key order, nothing if there is no such bucket."""
        header = self._buckets.get(name)
        if header is None:
            return
        if len(header) < _BUCKET.size:
            raise self._damaged(f"header of bucket {name!r} is too short")
        root, _ = _BUCKET.unpack_from(header)
        if root:
            elements = self._walk(root)
        else:
            elements = self._elements(memoryview(header)[_BUCKET.size :], f"bucket {name!r}")
        for flags, key, value in elements:
            if not flags & _IS_BUCKET:
                yield key, value

    def _damaged(self, what: str) -> CorruptionError:
        return CorruptionError(f"{self._name}: {what}; take the snapshot again")

    def _meta_offsets(self) -> Iterator[int]:
        """Offsets where a meta page may be: the page size is only known from one of them."""
        yield 0
        yield from (1 << bits for bits in range(9, 17))

    def _meta(self, offset: int) -> tuple[int, int, int, int] | None:
        """Return (transaction, page size, root page, pages) of a valid meta page."""
        end = offset + _HEAD + _META_BODY.size
        if end + 8 > len(self._data):
            return None
        body = bytes(self._data[offset + _HEAD : end])
        magic, version, size, _, root, _, _, pages, transaction = _META_BODY.unpack(body)
        if (magic, version) != (MAGIC, VERSION) or offset not in (0, size) or size < 512:
            return None
        if int.from_bytes(self._data[end : end + 8], "little") != _fnv1a(body):
            return None
        return transaction, size, root, pages

    def _page(self, page: int) -> memoryview:
        start = page * self._page_bytes
        if not 2 <= page < self._page_count:
            raise self._damaged(f"page {page} is named but does not exist")
        number, _, _, overflow = _PAGE.unpack_from(self._data, start)
        end = start + (1 + overflow) * self._page_bytes
        if number != page or page + overflow >= self._page_count:
            raise self._damaged(f"page {page} has a bad header")
        return self._data[start:end]

    def _walk(self, root: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield (flags, key, value) of a tree in key order."""
        seen = 0
        stack = [root]
        while stack:
            number = stack.pop()
            seen += 1
            if seen > self._page_count:
                raise self._damaged(f"the tree of page {root} goes in circles")
            page = self._page(number)
            _, flags, count, _ = _PAGE.unpack_from(page)
            if flags & _LEAF:
                yield from self._elements(page, f"page {number}")
            elif flags & _BRANCH:
                if _HEAD + count * _ELEMENT > len(page):
                    raise self._damaged(f"page {number} has more elements than room")
                offsets = range(_HEAD, _HEAD + count * _ELEMENT, _ELEMENT)
                below = [_BRANCH_ELEMENT.unpack_from(page, at)[2] for at in offsets]
                stack += reversed(below)
            else:
                raise self._damaged(f"page {number} is neither branch nor leaf (flags {flags:#x})")

    def _elements(self, page: memoryview, what: str) -> Iterator[tuple[int, bytes, bytes]]:
        if len(page) < _HEAD:
            raise self._damaged(f"{what} is too short")
        _, _, count, _ = _PAGE.unpack_from(page)
        if _HEAD + count * _ELEMENT > len(page):
            raise self._damaged(f"{what} has more elements than room")
        for at in range(_HEAD, _HEAD + count * _ELEMENT, _ELEMENT):
            flags, position, key_size, value_size = _LEAF_ELEMENT.unpack_from(page, at)
            start = at + position
            middle = start + key_size
            if middle + value_size > len(page):
                raise self._damaged(f"an element of {what} is outside it")
            yield flags, bytes(page[start:middle]), bytes(page[middle : middle + value_size])
