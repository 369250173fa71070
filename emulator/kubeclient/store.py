"""What an informer knows: objects by key, indexed; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulator.kubeclient.meta import join_key, key_of, labels_of, namespace_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Object = dict[str, Any]
    IndexFunction = Callable[[Object], Iterable[str]]
    Selector = Mapping[str, str] | Callable[[Mapping[str, str]], bool]


class Lister:
    """Read access to a store; what it returns is shared and must not be changed."""

    __slots__ = ("_indexers", "_indices", "_objects")

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}
        self._indexers: dict[str, IndexFunction] = {}
        # index name -> value -> key -> object; inner dicts keep arrival order.
        self._indices: dict[str, dict[str, dict[str, Object]]] = {}
        self._index_by("namespace", lambda obj: (namespace_of(obj),))

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        return self._objects.get(join_key(namespace, name))

    def get_by_key(self, key: str) -> Object | None:
        """The object of ``namespace/name``, or None."""
        return self._objects.get(key)

    def list(self, namespace: str = "", selector: Selector | None = None) -> Objects:
        """Objects of a namespace (empty: all) whose labels match, in order of arrival.

        ``selector`` is a mapping of labels that must be there, or a predicate over the labels.
        """
        found = self.by_index("namespace", namespace) if namespace else [*self._objects.values()]
        if selector is None:
            return found
        if callable(selector):
            return [obj for obj in found if selector(labels_of(obj))]
        wanted = selector.items()
        return [obj for obj in found if wanted <= labels_of(obj).items()]

    def by_index(self, index: str, value: str) -> Objects:
        """Objects for which the index function gave ``value``, in order of arrival."""
        return [*self._indices[index].get(value, {}).values()]

    def _index_by(self, name: str, function: IndexFunction) -> None:
        if name in self._indexers:
            return
        self._indexers[name] = function
        self._indices[name] = {}
        for key, obj in self._objects.items():
            self._index_one(name, function, key, obj)

    def _index_one(self, name: str, function: IndexFunction, key: str, obj: Object) -> None:
        index = self._indices[name]
        for value in function(obj):
            index.setdefault(value, {})[key] = obj

    def _unindex(self, key: str, obj: Object) -> None:
        for name, function in self._indexers.items():
            index = self._indices[name]
            for value in function(obj):
                entries = index.get(value)
                if entries is not None:
                    entries.pop(key, None)
                    if not entries:
                        del index[value]


Objects = list[dict[str, Any]]
Keys = list[str]


class Store(Lister):
    """A lister with its writer's side: only the informer that fills it holds this type."""

    __slots__ = ()

    def index_by(self, name: str, function: IndexFunction) -> None:
        """Keep an index; objects already here are indexed at once."""
        self._index_by(name, function)

    def put(self, obj: Object) -> Object | None:
        """Store an object; returns the one it replaces, None if it is new."""
        key = key_of(obj)
        old = self._objects.get(key)
        if old is not None:
            self._unindex(key, old)
        self._objects[key] = obj
        for name, function in self._indexers.items():
            self._index_one(name, function, key, obj)
        return old

    def remove(self, key: str) -> Object | None:
        """Drop an object; returns it, None if it was not here."""
        old = self._objects.pop(key, None)
        if old is not None:
            self._unindex(key, old)
        return old

    def all_keys(self) -> Keys:
        """Every key, in order of arrival."""
        return [*self._objects]
