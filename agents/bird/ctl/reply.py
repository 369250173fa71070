"""Replies of the control protocol: coded lines, and how they are framed (pure).

A line is ``CCCC-text`` while more follows, ``CCCC text`` at the end; a line whose code equals the
one before it begins with one blank instead.  Source: BIRD's nest/cli.c, doc/reply_codes.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OK: Final = 0
WELCOME: Final = 1
READING: Final = 2
RECONFIGURED: Final = 3
DISABLED_ALREADY: Final = 8
DISABLED: Final = 9
ENABLED_ALREADY: Final = 10
ENABLED: Final = 11
RESTARTED: Final = 12
RUNNING: Final = 13
ROUTE_COUNT: Final = 14
RELOADING: Final = 15
RESTRICTED: Final = 16
CONFIRMED: Final = 18
NOTHING_TO_DO: Final = 19
CONFIG_OK: Final = 20
UNDO_REQUESTED: Final = 21
UNDO_SCHEDULED: Final = 22
EVALUATED: Final = 23
RECOVERY: Final = 24
GRACEFUL_RESTART: Final = 25
SHUTDOWN: Final = 7
VERSION: Final = 1000
INTERFACE: Final = 1001
PROTOCOL: Final = 1002
ADDRESS: Final = 1003
FLAGS: Final = 1004
INTERFACE_SUMMARY: Final = 1005
PROTOCOL_DETAIL: Final = 1006
ROUTE: Final = 1007
ROUTE_DETAIL: Final = 1008
STATIC: Final = 1009
SYMBOL: Final = 1010
UPTIME: Final = 1011
ATTRIBUTE: Final = 1012
MEMORY: Final = 1018
BFD: Final = 1020
PROTOCOL_HEADER: Final = 2002
INTERFACE_HEADER: Final = 2005
NOT_FOUND: Final = 8001
CONFIG_ERROR: Final = 8002
NO_MATCH: Final = 8003
RELOAD_FAILED: Final = 8006
DENIED: Final = 8007
RUNTIME_ERROR: Final = 8008
TOO_LONG: Final = 9000
SYNTAX: Final = 9001
WRONG_SYMBOL: Final = 9002


class Dialect(enum.IntEnum):
    """Whose texts are printed: BIRD 1.6's, which Calico's tools insist on, or BIRD 2's."""

    BIRD1 = 1
    BIRD2 = 2


class Line(NamedTuple):
    """One line of a reply; ``last`` ends it."""

    code: int
    text: str
    last: bool = False


# None among lines is a pause: whoever sends them may do something else.
Part = Line | None
DONE: Final = Line(OK, "", last=True)


class CommandError(Exception):
    """A command that cannot be understood or done; becomes the last line of its reply."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.line = Line(code, text, last=True)


def frame(parts: Iterable[Part]) -> Iterator[str | None]:
    """Write a reply's lines as they are sent, newline included; pauses pass through."""
    previous = -1
    for part in parts:
        if part is None:
            yield None
            continue
        code, text, last = part
        if last:
            yield f"{code:04d} {text}\n"
        elif code == previous:
            yield f" {text}\n"
        else:
            yield f"{code:04d}-{text}\n"
        previous = code


def final(code: int, text: str) -> Line:
    """The last line of a reply."""
    return Line(code, text, last=True)
