"""Words of the command language: what one line consists of (pure).  Source: BIRD's cf-lex.l."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from agents.bird.ctl.reply import SYNTAX, CommandError, Dialect

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN: Final = re.compile(
    r"""
    (?P<SPACE>\s+)
  | (?P<TEXT>"[^"]*")
  | (?P<QUOTED>'[^']*')
  | (?P<IP4>\d+\.\d+\.\d+\.\d+)
  | (?P<IP6>(?:[0-9a-fA-F]{1,4}:|:)(?:[0-9a-fA-F]{0,4}:){1,7}[0-9a-fA-F]{0,4})
  | (?P<NUM>0x[0-9a-fA-F]+|\d+)
  | (?P<WORD>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<OP>!=|!~|<=|>=|&&|\|\||\[=|=\]|\.\.|[-+*/=<>~!()\[\]{},.;?:])
  | (?P<BAD>.)
    """,
    re.VERBOSE,
)


class Token(NamedTuple):
    """``kind`` is TEXT, NUM, IP4, IP6, WORD, SYMBOL (a quoted word), OP, BAD or END."""

    kind: str
    text: str


END: Final = Token("END", "")


class Tokens:
    """A line, read from left to right."""

    def __init__(self, line: str, dialect: Dialect, known: Callable[[str], bool]) -> None:
        """``known`` says which words are names of something, for the text of syntax errors."""
        self._tokens = [
            _token(match) for match in _TOKEN.finditer(line) if match.lastgroup != "SPACE"
        ]
        self._at = 0
        self.dialect = dialect
        self._known = known

    @property
    def next(self) -> Token:
        """The token that comes, END after the last."""
        return self._tokens[self._at] if self._at < len(self._tokens) else END

    def take(self) -> Token:
        """Go past one token; returns it."""
        token = self.next
        self._at += 1
        return token

    def accept(self, *texts: str) -> str | None:
        """Go past a word or operator if it is one of these."""
        token = self.next
        if token.kind in ("WORD", "OP") and token.text in texts:
            self._at += 1
            return token.text
        return None

    def expect(self, text: str) -> None:
        """Go past exactly this word or operator."""
        if self.accept(text) is None:
            raise self.error()

    def name(self) -> str | None:
        """Go past a name, plain or quoted."""
        if self.next.kind in ("WORD", "SYMBOL"):
            return self.take().text
        return None

    def text(self) -> str | None:
        """Go past a text in double quotes."""
        return self.take().text if self.next.kind == "TEXT" else None

    def number(self) -> int | None:
        """Go past a number."""
        return int(self.take().text, 0) if self.next.kind == "NUM" else None

    def end(self) -> None:
        """Nothing may follow."""
        if self.next is not END:
            raise self.error()

    def error(self, expecting: str = "") -> CommandError:
        """A syntax error at the next token, in the dialect's words."""
        if self.dialect is Dialect.BIRD1:
            return CommandError(SYNTAX, "syntax error")
        token = self.next
        kind = token.kind
        if kind in ("WORD", "SYMBOL"):
            kind = "CF_SYM_KNOWN" if self._known(token.text) else "CF_SYM_UNDEFINED"
        elif kind in ("OP", "BAD"):
            kind = f"'{token.text}'"
        more = f", expecting {expecting}" if expecting else ""
        return CommandError(SYNTAX, f"syntax error, unexpected {kind}{more}")


def _token(match: re.Match[str]) -> Token:
    kind, text = match.lastgroup or "BAD", match.group()
    if kind == "TEXT":
        return Token(kind, text[1:-1])
    if kind == "QUOTED":
        return Token("SYMBOL", text[1:-1])
    return Token(kind, text)
