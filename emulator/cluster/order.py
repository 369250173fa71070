"""Lays what nodes use close together before they are forked.

A call writes a reference count into the function's code object, a look-up of an attribute one into
its name.  They lie where the import of their module put them, and a node runs one function in
seven: each write copies a whole page, so that a node would copy 3 MiB for 1 MiB of code.  As a
linker does with an order file, ``lay_together`` copies the code of the functions named in
``order.txt`` to one place.  Names are the same object everywhere: ``make_names`` makes those of
``names.txt``, one after the other, before the modules that have them are imported.  What is
missing in these files or no longer exists costs memory and nothing else;
``python -m tests.bench.write_order`` writes them anew.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import CodeType, FunctionType
from typing import Final

ORDER_FILE: Final = Path(__file__).with_name("order.txt")
NAMES_FILE: Final = Path(__file__).with_name("names.txt")
_names: Final[list[str]] = []
# The originals: freed, they would be holes for nodes to fill and, doing so, to copy.
_originals: Final[list[CodeType]] = []


def make_names() -> None:
    """Make the names in the names file; to be called before the imports."""
    _names.extend(map(sys.intern, NAMES_FILE.read_text().split()))


def lay_together() -> None:
    """Copy the code of the functions named in the order file."""
    wanted = parse_order(ORDER_FILE.read_text())
    for function in gc.get_objects():
        if type(function) is not FunctionType:
            continue
        if function.__qualname__ in wanted.get(function.__module__, ()):
            _originals.append(function.__code__)
            function.__code__ = _copy(function.__code__)
            function.__qualname__ = sys.intern(function.__qualname__)


def _copy(code: CodeType) -> CodeType:
    return code.replace(
        co_consts=tuple(map(_copy_constant, code.co_consts)),
        co_qualname=sys.intern(code.co_qualname),
    )


def _copy_constant(constant: object) -> object:
    if isinstance(constant, CodeType):
        return _copy(constant)
    if type(constant) is tuple:
        return tuple(map(_copy_constant, constant))
    if type(constant) is str and len(constant) > 1:
        # Of what looks like a name the interpreter takes the one object there is.
        return constant[:1] + constant[1:]
    return constant


def parse_order(text: str) -> dict[str, frozenset[str]]:
    """Qualified names by module; lines are ``MODULE: NAME NAME …``."""
    lines = (line.partition(": ") for line in text.splitlines())
    return {module: frozenset(names.split()) for module, _, names in lines}
