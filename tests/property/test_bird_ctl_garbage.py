"""bird.ctl's parser: any line is understood or refused, never an exception of another kind."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.bird.ctl.command import Evaluate, ShowRoute, Symbols, parse
from agents.bird.ctl.expression import evaluate
from agents.bird.ctl.reply import CommandError, Dialect

SYMBOLS = Symbols(("static1", "Mesh"), ("master4", "master6"))
TEXT = """
show route protocols all for where net ~ = != < > && || ! ( ) [ ] [= =] { } , .. . + - * /
10.0.0.0 8 ::1 fd00:: 64 Mesh static1 master4 nosuch count stats export noexport filtered
primary bgp_path bgp_community defined len first last ip source RTS_BGP true 'x' eval 1 0
disable enable restart reload in out configure check timeout undo mrt dump table to "m*"
"""
WORDS = TEXT.split()
DIALECTS = st.sampled_from(list(Dialect))
LINES = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join),
    st.lists(st.sampled_from(WORDS), max_size=20).map(lambda words: "eval " + " ".join(words)),
    st.lists(st.sampled_from(WORDS), max_size=20).map(lambda w: "show route where " + " ".join(w)),
)


@given(LINES, DIALECTS)
def test_any_line_is_understood_or_refused(line: str, dialect: Dialect) -> None:
    refused: CommandError | None = None
    command = None
    try:
        command = parse(line, SYMBOLS, dialect)
        if isinstance(command, Evaluate):
            assert isinstance(evaluate(command.expression, dialect), str)
    except CommandError as error:
        refused = error
    if refused is not None:
        assert refused.line.last
        assert refused.line.code >= 8000
    if isinstance(command, ShowRoute) and command.net is not None:
        assert str(command.net)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.sampled_from("+-*"))
def test_integers_wrap_as_birds_do(a: int, b: int, operator: str) -> None:
    command = parse(f"eval {a} {operator} {b}", SYMBOLS, Dialect.BIRD1)
    assert isinstance(command, Evaluate)
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    assert evaluate(command.expression, Dialect.BIRD1) == str(value & 0xFFFFFFFF)
