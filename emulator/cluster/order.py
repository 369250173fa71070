"""Lays the code that nodes run close together before they are forked.

A call writes a reference count into the function's code object.  Code objects lie where the import
of their module put them, and a node runs one in seven: each write copies a whole page, so that a
node would copy 3 MiB for 1 MiB of code.  As a linker does with an order file, ``lay_together``
copies the code of the functions named in ``order.txt`` to one place.  A name that is missing there
or no longer exists costs memory and nothing else; ``python -m tests.bench.write_order`` writes the
file anew.
"""

from __future__ import annotations

import gc
from pathlib import Path
from types import CodeType, FunctionType
from typing import Final

ORDER_FILE: Final = Path(__file__).with_name("order.txt")
# The originals: freed, they would be holes for nodes to fill and, doing so, to copy.
_originals: Final[list[CodeType]] = []


def lay_together() -> None:
    """Copy the code of the functions named in the order file."""
    wanted = parse_order(ORDER_FILE.read_text())
    for function in gc.get_objects():
        if type(function) is not FunctionType:
            continue
        if function.__qualname__ in wanted.get(function.__module__, ()):
            _originals.append(function.__code__)
            function.__code__ = _copy(function.__code__)


def _copy(code: CodeType) -> CodeType:
    inner = (_copy(item) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.replace(co_consts=tuple(inner))


def parse_order(text: str) -> dict[str, frozenset[str]]:
    """Qualified names by module; lines are ``MODULE: NAME NAME …``."""
    lines = (line.partition(": ") for line in text.splitlines())
    return {module: frozenset(names.split()) for module, _, names in lines}
