"""The shell's integer arithmetic, checked against the real one where there is one."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.errors import UsageError
from emulator.shell.arithmetic import evaluate

NUMBERS = st.integers(0, 1000).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(
            inner,
            st.sampled_from(
                ["+", "-", "*", "==", "!=", "<", "<=", ">", ">=", "&&", "||", "&", "|", "^"]
            ),
            inner,
        ).map(" ".join),
        inner.map("({})".format),
        inner.map("-({})".format),
        inner.map("! {}".format),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
@settings(max_examples=40, deadline=None)
def test_expressions_have_the_real_shells_value(expression: str) -> None:
    shell = shutil.which("dash") or shutil.which("sh")
    if shell is None:
        pytest.skip("no shell")
    argv = [shell, "-c", f"echo $(({expression}))"]
    real = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert str(evaluate(expression, {})) == real.strip()


def test_names_are_read_and_written() -> None:
    variables = {"i": "3", "text": "word"}
    assert evaluate("i+1", variables) == 4
    assert evaluate("i++ * 2", variables) == 6
    assert evaluate("j = i -= 1", variables) == 3
    assert evaluate("--i", variables) == 2
    assert evaluate("text + nothing", variables) == 0
    assert variables == {"i": "2", "j": "3", "text": "word"}


@pytest.mark.parametrize(("text", "value"), [("-7/2", -3), ("-7%2", -1), ("0x10+010", 24), ("", 0)])
def test_numbers_are_those_of_c(text: str, value: int) -> None:
    assert evaluate(text, {}) == value


@pytest.mark.parametrize("text", ["1/0", "1+", "(1", "1 2", "@", "09", "((" * 60])
def test_what_makes_no_sense_is_told(text: str) -> None:
    with pytest.raises(UsageError):
        evaluate(text, {})
