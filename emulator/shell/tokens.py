"""A shell's text cut into words and operators (pure)."""

from __future__ import annotations

import re
from typing import NamedTuple

from emulator.errors import UsageError

# What separates words; other white space is a part of them.
BLANKS = " \t\n"
_OPERATORS = (
    *("&&", "||", ";;", "<<-", "<<", ">>", "2>&1", "1>&2", ">&2", "2>>", "2>", "1>"),
    *("|", ";", "&"),
)
_BACKQUOTED = re.compile(r"((?:[^`\\]|\\.)*+)`", re.DOTALL)


class IncompleteError(UsageError):
    """The text ends in the middle of something: more lines may complete it.

    None does before the first one that has ``until`` in it.
    """

    def __init__(self, message: str, until: str = "") -> None:
        super().__init__(message)
        self.until = until


class Part(NamedTuple):
    """A piece of a word: ``kind`` is text, var, math or sub (command substitution)."""

    kind: str
    text: str
    quoted: bool


Word = tuple[Part, ...]


class Token(NamedTuple):
    """``kind`` is word or op; a here-document's text is the ``word`` of its operator."""

    kind: str
    text: str
    word: Word


class _HereDocument(NamedTuple):
    """One whose lines are still to come: the place of its operator among the tokens."""

    at: int
    end: str
    quoted: bool
    strip_tabs: bool


def tokens(text: str, *, more: bool = False) -> list[Token]:
    """Cut a script; with ``more`` lines to come what is not at its end raises IncompleteError.

    Raises UsageError with the shell's own complaint.
    """
    found: list[Token] = []
    waiting: list[_HereDocument] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\n":
            found.append(Token("op", ";", ()))
            at += 1
            for document in waiting:
                body, at = _here_document(text, at, document, more=more)
                found[document.at] = Token("op", "<<", body)
            waiting = []
        elif char in BLANKS:
            at += 1
        elif text.startswith("\\\n", at):
            at += 2
        elif char == "#":
            while at < len(text) and text[at] != "\n":
                at += 1
        elif operator := _operator(text, at):
            at += len(operator)
            if operator.startswith("<<"):
                while text[at : at + 1] in (" ", "\t"):
                    at += 1
                word, _, at = _word(text, at)
                if not word:
                    raise UsageError("syntax error: here-document without a delimiter")
                quoted = any(part.quoted for part in word)
                end = "".join(part.text for part in word)
                waiting.append(_HereDocument(len(found), end, quoted, operator == "<<-"))
                operator = "<<"
            found.append(Token("op", operator, ()))
        else:
            if more and text.endswith("\\") and _ends_in_backslash(text, at):
                raise IncompleteError("syntax error: unexpected end of file")
            word, raw, at = _word(text, at)
            found.append(Token("word", raw, word))
    if waiting and more:
        raise IncompleteError("syntax error: unexpected end of file", waiting[0].end)
    return found


def _ends_in_backslash(text: str, at: int) -> bool:
    """True if the word at ``at`` goes on to a backslash that has nothing after it."""
    try:
        _, raw, end = _word(text, at)
    except IncompleteError:
        return False  # of quotes, which say so themselves
    trailing = len(raw) - len(raw.rstrip("\\"))
    return end >= len(text) and trailing % 2 == 1


def _here_document(text: str, at: int, document: _HereDocument, *, more: bool) -> tuple[Word, int]:
    """The lines from ``at`` to the delimiter, and where the script goes on."""
    lines: list[str] = []
    while at < len(text):
        newline = text.find("\n", at)
        line = text[at:] if newline < 0 else text[at:newline]
        at = min(at + len(line) + 1, len(text))
        if document.strip_tabs:
            line = line.lstrip("\t")
        if line == document.end:
            break
        lines.append(line + "\n")
    else:
        # Like the real shells: the end of the script ends it too.
        if more:
            raise IncompleteError("syntax error: unexpected end of file", document.end)
    body = "".join(lines)
    return ((Part("text", body, True),) if document.quoted else _expanding(body)), at


def _expanding(text: str) -> Word:
    """A here-document's text: parameters and substitutions are replaced, quotes are text."""
    parts: list[Part] = []
    _expand(text, 0, parts, end="")
    return tuple(parts)


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
        if char in BLANKS or char in "|&;<>()":
            break
        if char == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise IncompleteError("syntax error: unterminated quoted string", "'")
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
            while end < len(text) and not (text[end] in BLANKS or text[end] in "|&;<>()'\"\\$`"):
                end += 1
            parts.append(Part("text", text[at:end], False))
            at = end
    return tuple(parts), text[start:at], at


def _double_quoted(text: str, at: int, parts: list[Part]) -> int:
    at = _expand(text, at, parts, end='"')
    if at < len(text):
        return at + 1
    raise IncompleteError("syntax error: unterminated quoted string", '"')


def _expand(text: str, at: int, parts: list[Part], *, end: str) -> int:
    """Add what is written up to ``end`` ("" to the end of the text), and say where that is."""
    plain = ""
    parts.append(Part("text", "", True))
    while at < len(text) and text[at] != end:
        char = text[at]
        following = text[at + 1 : at + 2]
        if char == "\\" and following and following in f"\\$`\n{end}":
            plain += following.removeprefix("\n")
            at += 2
        elif char in "$`":
            parts.append(Part("text", plain, True))
            plain = ""
            at = _dollar(text, at, parts, quoted=True)
        else:
            plain += char
            at += 1
    parts.append(Part("text", plain, True))
    return at


def _dollar(text: str, at: int, parts: list[Part], *, quoted: bool) -> int:
    if text[at] == "`":
        found = _BACKQUOTED.match(text, at + 1)
        if found is None:
            raise IncompleteError("syntax error: unterminated command substitution", "`")
        parts.append(Part("sub", re.sub(r"\\([`$\\])", r"\1", found[1]), quoted))
        return found.end()
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
            raise IncompleteError("syntax error: missing '}'", "}")
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
    raise IncompleteError("syntax error: unterminated command substitution", ")")
