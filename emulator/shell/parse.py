"""The shell's grammar: text to a tree (pure).

The part of POSIX sh that one-liners and container commands use: lists, pipelines, redirections,
here-documents, quotes, parameters, command substitution, arithmetic, ``for``, ``while``,
``until``, ``if``, groups, ``!``.
Not there: functions, globbing, background jobs, ``case``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from emulator.errors import UsageError
from emulator.shell.tokens import IncompleteError, Part, Word, tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.shell.tokens import Token

# Commands within commands: a tree is walked by functions that call themselves.
MAX_NESTING = 20
_RESERVED = ("then", "do", "done", "fi", "else", "elif", "}", ")")


class Redirect(NamedTuple):
    """``fd`` 0, 1 or 2; ``mode`` is ``<``, ``<<``, ``>``, ``>>``, ``&1`` or ``&2`` (a copy).

    ``target`` is a file's name, with ``<<`` the here-document's text.
    """

    fd: int
    mode: str
    target: Word


class Simple(NamedTuple):
    """Assignments, words, redirections."""

    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]
    redirects: tuple[Redirect, ...]


class Pipeline(NamedTuple):
    """Commands joined by ``|``."""

    commands: tuple[Node, ...]
    negated: bool


class AndOr(NamedTuple):
    """Pipelines joined by ``&&`` and ``||``; the first operator is empty."""

    parts: tuple[tuple[str, Pipeline], ...]


class Script(NamedTuple):
    """Statements one after the other."""

    items: tuple[AndOr, ...]


class Loop(NamedTuple):
    """``while`` or ``until``."""

    until: bool
    condition: Script
    body: Script


class For(NamedTuple):
    """``for NAME in WORDS``."""

    name: str
    words: tuple[Word, ...]
    body: Script


class If(NamedTuple):
    """Branches in order, then the ``else``."""

    branches: tuple[tuple[Script, Script], ...]
    otherwise: Script | None


class Group(NamedTuple):
    """``( … )`` runs in a subshell, ``{ …; }`` does not."""

    body: Script
    subshell: bool


Node = Simple | Loop | For | If | Group


def parse(text: str, *, more: bool = False) -> Script:
    """Return the tree; UsageError with the shell's own complaint for what does not parse.

    It is an IncompleteError where more lines could complete the text; ``more`` says that there may
    be such, so that an ending backslash or an open here-document is one too.
    """
    parser = _Parser(tokens(text, more=more))
    tree = parser.sequence(())
    if not parser.at_end():
        raise UsageError(f'syntax error: unexpected "{parser.peek()}"')
    return tree


class _Parser:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def at_end(self) -> bool:
        return self._at >= len(self._tokens)

    def peek(self) -> str:
        return "" if self.at_end() else self._tokens[self._at].text

    def _op(self, *texts: str) -> bool:
        """Take the next token if it is one of these operators."""
        if not self.at_end():
            token = self._tokens[self._at]
            if token.kind == "op" and token.text in texts:
                self._at += 1
                return True
        return False

    def _reserved(self, text: str) -> bool:
        """Take the next token if it is this reserved word."""
        if not self.at_end():
            token = self._tokens[self._at]
            plain = len(token.word) == 1 and not token.word[0].quoted
            if ((token.kind == "word" and plain) or token.text == ")") and token.text == text:
                self._at += 1
                return True
        return False

    def _expect(self, text: str) -> None:
        if not self._reserved(text):
            self._unexpected(self.peek() or "end of file", f' (expecting "{text}")', text)

    def _unexpected(self, found: str, expected: str = "", until: str = "") -> NoReturn:
        message = f"syntax error: unexpected {found}{expected}"
        raise IncompleteError(message, until) if self.at_end() else UsageError(message)

    def sequence(self, ends: tuple[str, ...]) -> Script:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise UsageError(f"syntax error: more than {MAX_NESTING} commands within commands")
        script = self._sequence(ends)
        self._depth -= 1
        return script

    def _sequence(self, ends: tuple[str, ...]) -> Script:
        items: list[AndOr] = []
        while True:
            while self._op(";"):
                pass
            if self.at_end() or self.peek() in ends:
                return Script(tuple(items))
            if self.peek() in _RESERVED and self.peek() not in ends:
                raise UsageError(f'syntax error: unexpected "{self.peek()}"')
            items.append(self._and_or())
            if not self._op(";", "&"):
                if self.at_end() or self.peek() in ends:
                    return Script(tuple(items))
                raise UsageError(f'syntax error: unexpected "{self.peek()}"')

    def _and_or(self) -> AndOr:
        parts = [("", self._pipeline())]
        while True:
            if self._op("&&"):
                parts.append(("&&", self._pipeline()))
            elif self._op("||"):
                parts.append(("||", self._pipeline()))
            else:
                return AndOr(tuple(parts))

    def _pipeline(self) -> Pipeline:
        negated = self._reserved("!")
        while self._op(";"):
            pass
        commands = [self._command()]
        while self._op("|"):
            while self._op(";"):
                pass
            commands.append(self._command())
        return Pipeline(tuple(commands), negated)

    def _command(self) -> Node:
        if self._reserved("while"):
            return self._loop(until=False)
        if self._reserved("until"):
            return self._loop(until=True)
        if self._reserved("for"):
            return self._for()
        if self._reserved("if"):
            return self._if()
        if self._op("("):
            body = self.sequence((")",))
            self._expect(")")
            return Group(body, subshell=True)
        if self._reserved("{"):
            body = self.sequence(("}",))
            self._expect("}")
            return Group(body, subshell=False)
        return self._simple()

    def _loop(self, *, until: bool) -> Loop:
        condition = self.sequence(("do",))
        self._expect("do")
        body = self.sequence(("done",))
        self._expect("done")
        return Loop(until, condition, body)

    def _for(self) -> For:
        if self.at_end():
            raise UsageError("syntax error: bad for loop variable")
        name = self.peek()
        self._at += 1
        words: list[Word] = []
        if self._reserved("in"):
            while not self.at_end() and self._tokens[self._at].kind == "word":
                words.append(self._tokens[self._at].word)
                self._at += 1
        while self._op(";"):
            pass
        self._expect("do")
        body = self.sequence(("done",))
        self._expect("done")
        return For(name, tuple(words), body)

    def _if(self) -> If:
        branches: list[tuple[Script, Script]] = []
        while True:
            condition = self.sequence(("then",))
            self._expect("then")
            branches.append((condition, self.sequence(("elif", "else", "fi"))))
            if not self._reserved("elif"):
                break
        otherwise = self.sequence(("fi",)) if self._reserved("else") else None
        self._expect("fi")
        return If(tuple(branches), otherwise)

    def _simple(self) -> Simple:
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirects: list[Redirect] = []
        while not self.at_end():
            token = self._tokens[self._at]
            if token.kind == "op":
                redirect = self._redirect()
                if redirect is None:
                    break
                redirects.append(redirect)
                continue
            self._at += 1
            name, equals, _ = token.text.partition("=")
            if equals and not words and name.isidentifier():
                assignments.append((name, _after_equals(token.word)))
            else:
                words.append(token.word)
        if not (assignments or words or redirects):
            self._unexpected(f'"{self.peek() or "end of file"}"')
        return Simple(tuple(assignments), tuple(words), tuple(redirects))

    def _redirect(self) -> Redirect | None:
        if not self.at_end() and self.peek() == "<<":
            self._at += 1
            return Redirect(0, "<<", self._tokens[self._at - 1].word)
        for operator, fd, mode in (
            ("2>&1", 2, "&1"),
            ("1>&2", 1, "&2"),
            (">&2", 1, "&2"),
            ("2>>", 2, ">>"),
            ("2>", 2, ">"),
            ("1>", 1, ">"),
            (">>", 1, ">>"),
            (">", 1, ">"),
            ("<", 0, "<"),
        ):
            if self._op(operator):
                if mode.startswith("&"):
                    return Redirect(fd, mode, ())
                if self.at_end() or self._tokens[self._at].kind != "word":
                    raise UsageError("syntax error: redirection without a file name")
                self._at += 1
                return Redirect(fd, mode, self._tokens[self._at - 1].word)
        return None


def _after_equals(word: Word) -> Word:
    """The value part of an assignment word."""
    first = word[0]
    _, _, rest = first.text.partition("=")
    return (Part(first.kind, rest, first.quoted), *word[1:])
