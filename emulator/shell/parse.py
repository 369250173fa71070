"""The shell's grammar: text to a tree (pure).

The part of POSIX sh that one-liners and container commands use: lists, pipelines, redirections,
quotes, parameters, command substitution, arithmetic, ``for``, ``while``, ``until``, ``if``,
groups, ``!``.
Not there: functions, here-documents, globbing, background jobs, ``case``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_OPERATORS = ("&&", "||", ";;", ">>", "2>&1", "1>&2", ">&2", "2>>", "2>", "1>", "|", ";", "&")
_RESERVED = ("then", "do", "done", "fi", "else", "elif", "}", ")")


class Part(NamedTuple):
    """A piece of a word: ``kind`` is text, var, math or sub (command substitution)."""

    kind: str
    text: str
    quoted: bool


Word = tuple[Part, ...]


class Redirect(NamedTuple):
    """``fd`` 0, 1 or 2; ``mode`` is ``<``, ``>``, ``>>`` or ``&1``/``&2`` (copy of a stream)."""

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


class _Token(NamedTuple):
    kind: str  # word | op
    text: str
    word: Word


def parse(text: str) -> Script:
    """Return the tree; UsageError with the shell's own complaint for what does not parse."""
    parser = _Parser(_tokens(text))
    tree = parser.sequence(())
    if not parser.at_end():
        raise UsageError(f'syntax error: unexpected "{parser.peek()}"')
    return tree


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\n":
            tokens.append(_Token("op", ";", ()))
            at += 1
        elif char.isspace():
            at += 1
        elif char == "#" and (at == 0 or text[at - 1].isspace()):
            while at < len(text) and text[at] != "\n":
                at += 1
        elif operator := _operator(text, at):
            tokens.append(_Token("op", operator, ()))
            at += len(operator)
        else:
            word, raw, at = _word(text, at)
            tokens.append(_Token("word", raw, word))
    return tokens


def _operator(text: str, at: int) -> str:
    found = [each for each in _OPERATORS if text.startswith(each, at)]
    if found:
        return max(found, key=len)
    if text[at] in "<>()":
        return text[at]
    return ""


def _word(text: str, at: int) -> tuple[Word, str, int]:
    parts: list[Part] = []
    start = at
    while at < len(text):
        char = text[at]
        if char.isspace() or char in "|&;<>()":
            break
        if char == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise UsageError("syntax error: unterminated quoted string")
            parts.append(Part("text", text[at + 1 : end], True))
            at = end + 1
        elif char == '"':
            at = _double_quoted(text, at + 1, parts)
        elif char == "\\":
            # At the end of a line it joins the next one; at the very end it is itself.
            following = text[at + 1 : at + 2] or "\\"
            parts.append(Part("text", following.removeprefix("\n"), True))
            at += 2
        elif char in "$`":
            at = _dollar(text, at, parts, quoted=False)
        else:
            end = at
            while end < len(text) and not (text[end].isspace() or text[end] in "|&;<>()'\"\\$`"):
                end += 1
            parts.append(Part("text", text[at:end], False))
            at = end
    return tuple(parts), text[start:at], at


def _double_quoted(text: str, at: int, parts: list[Part]) -> int:
    plain = ""
    parts.append(Part("text", "", True))
    while at < len(text):
        char = text[at]
        if char == '"':
            parts.append(Part("text", plain, True))
            return at + 1
        if char == "\\" and at + 1 < len(text) and text[at + 1] in '"\\$`\n':
            plain += text[at + 1]
            at += 2
        elif char in "$`":
            parts.append(Part("text", plain, True))
            plain = ""
            at = _dollar(text, at, parts, quoted=True)
        else:
            plain += char
            at += 1
    raise UsageError("syntax error: unterminated quoted string")


def _dollar(text: str, at: int, parts: list[Part], *, quoted: bool) -> int:
    if text[at] == "`":
        end = text.find("`", at + 1)
        if end < 0:
            raise UsageError("syntax error: unterminated command substitution")
        parts.append(Part("sub", text[at + 1 : end], quoted))
        return end + 1
    following = text[at + 1 : at + 2]
    if following == "(":
        end = _matching(text, at + 1)
        if text[at + 2] == "(" and text[end - 1] == ")" and _matching(text, at + 2) == end - 1:
            parts.append(Part("math", text[at + 3 : end - 1], quoted))
        else:
            parts.append(Part("sub", text[at + 2 : end], quoted))
        return end + 1
    if following == "{":
        end = text.find("}", at)
        if end < 0:
            raise UsageError("syntax error: missing '}'")
        parts.append(Part("var", text[at + 2 : end], quoted))
        return end + 1
    if following and following in "?#@*$!0123456789":
        parts.append(Part("var", following, quoted))
        return at + 2
    end = at + 1
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    if end == at + 1:
        parts.append(Part("text", "$", quoted))
    else:
        parts.append(Part("var", text[at + 1 : end], quoted))
    return end


def expression_parts(text: str) -> list[Part]:
    """The parts of an arithmetic expression, whose parameters are replaced first."""
    parts: list[Part] = []
    at = 0
    while at < len(text):
        if text[at] in "$`":
            at = _dollar(text, at, parts, quoted=True)
        else:
            parts.append(Part("text", text[at], quoted=True))
            at += 1
    return parts


def _matching(text: str, at: int) -> int:
    """The index of the parenthesis closing the one at ``at``, quotes respected."""
    depth = 0
    quote = ""
    for index in range(at, len(text)):
        char = text[index]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
            if not depth:
                return index
    raise UsageError("syntax error: unterminated command substitution")


class _Parser:
    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

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
            found = self.peek() or "end of file"
            raise UsageError(f'syntax error: unexpected {found} (expecting "{text}")')

    def sequence(self, ends: tuple[str, ...]) -> Script:
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
            found = self.peek() or "end of file"
            raise UsageError(f'syntax error: unexpected "{found}"')
        return Simple(tuple(assignments), tuple(words), tuple(redirects))

    def _redirect(self) -> Redirect | None:
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
