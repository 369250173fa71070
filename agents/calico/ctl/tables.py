"""The two kinds of tables calicoctl prints (pure).

``get`` lays cells out with Go's text/tabwriter (minwidth 5, padding 3), ``node status`` and
``ipam`` draw boxes with olekukonko/tablewriter v0.0.x.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_MIN_WIDTH: Final = 5
_PADDING: Final = 3
# A cell of a box that is wider is broken between words (tablewriter MAX_ROW_WIDTH).
MAX_CELL_WIDTH: Final = 30
# What tablewriter aligns to the right: numbers and percentages.
_NUMBER: Final = re.compile(r"-?(\d{1,3}(,\d{3})*|\d+)(\.\d+)?%?")


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under headings; every cell is padded, the last one of a line too."""
    lines = [headings, *rows]
    widths = [
        max(_MIN_WIDTH, max(len(line[at]) for line in lines) + _PADDING)
        for at in range(len(headings))
    ]
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + "\n"
        for line in lines
    )


def box(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in a frame: headings in capitals and centred, text left, numbers right."""
    heads = [heading.upper() for heading in headings]
    broken = [[wrap(cell) for cell in row] for row in rows]
    widths = [
        max(len(heads[at]), *(len(line) for row in broken for line in row[at]), 0)
        for at in range(len(heads))
    ]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+\n"
    out = [rule, _line([_centred(head, width) for head, width in zip(heads, widths, strict=True)])]
    out.append(rule)
    for row in broken:
        for number in range(max(len(lines) for lines in row)):
            cells = []
            for lines, width in zip(row, widths, strict=True):
                text = lines[number] if number < len(lines) else ""
                right = _NUMBER.fullmatch(text) is not None
                cells.append(text.rjust(width) if right else text.ljust(width))
            out.append(_line(cells))
    out.append(rule)
    return "".join(out)


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " for cell in cells) + "|\n"


def _centred(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return " " * left + text + " " * (width - len(text) - left)


def wrap(text: str, limit: int = MAX_CELL_WIDTH) -> list[str]:
    """Break a cell between words into lines that are as evenly full as possible.

    The squares of what each line but the last leaves empty are least in sum, as in
    tablewriter's WrapString.
    """
    words = text.split()
    if not words:
        return [""]
    limit = max(limit, *(len(word) for word in words))
    # best[i]: cost and lines of words[i:].
    best: list[tuple[int, list[str]]] = [(0, [])] * (len(words) + 1)
    for start in reversed(range(len(words))):
        rest = " ".join(words[start:])
        if len(rest) <= limit:
            best[start] = (0, [rest])
            continue
        options = []
        for end in range(start + 1, len(words)):
            line = " ".join(words[start:end])
            if len(line) > limit:
                break
            cost, lines = best[end]
            options.append(((limit - len(line)) ** 2 + cost, [line, *lines]))
        best[start] = min(options, key=lambda option: option[0])
    return best[0][1]
