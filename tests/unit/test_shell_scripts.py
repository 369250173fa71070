"""The shell's grammar and its small tools, without a network."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from typing import Any, cast

import pytest

from emulator.errors import UsageError
from emulator.runtime.clock import Clock
from emulator.shell.context import END_OF_INPUT, Buffer, Pipe, ShellContext
from emulator.shell.files import MemoryFiles
from emulator.shell.parse import parse
from emulator.shell.registry import run_command

EPOCH = 1_525_874_322.0


def make_context(
    style: str = "gnu", stdin: bytes | None = None
) -> tuple[ShellContext, Buffer, Buffer]:
    out, err = Buffer(), Buffer()
    clock = Clock(lambda: asyncio.get_running_loop().time(), EPOCH)
    reader = None
    if stdin is not None:
        reader = asyncio.StreamReader()
        reader.feed_data(stdin)
        reader.feed_eof()
    nothing = cast("Any", None)
    files = MemoryFiles(
        clock.time,
        files={"/run/flannel/subnet.env": (b"FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", EPOCH)},
        directories=("/tmp", "/etc"),
    )
    context = ShellContext(
        kernel=nothing,
        ns=nothing,
        network=nothing,
        files=files,
        hostname="w1",
        env={"NAME": "world", "LIST": "a b  c"},
        stdout=out,
        stderr=err,
        clock=clock,
        rng=random.Random(1),
        stdin=reader,
        style=style,
    )
    return context, out, err


async def run(script: str, style: str = "gnu", stdin: bytes | None = None) -> tuple[int, str, str]:
    context, out, err = make_context(style, stdin)
    status = await run_command(context, ["sh", "-c", script])
    return status, out.text, err.text


@pytest.mark.parametrize(
    ("script", "status", "out"),
    [
        ("echo hello $NAME", 0, "hello world\n"),
        ("echo '$NAME' \"$NAME\" \\$NAME", 0, "$NAME world $NAME\n"),
        ('for i in $LIST "$LIST"; do echo "<$i>"; done', 0, "<a>\n<b>\n<c>\n<a b  c>\n"),
        ("false && echo no; echo $?", 0, "1\n"),
        ("false || echo yes", 0, "yes\n"),
        ("! true; echo $?", 0, "1\n"),
        ("true && false || echo last", 0, "last\n"),
        ("cat /run/flannel/subnet.env | grep MTU | wc -l", 0, "1\n"),
        ("echo $(echo inner; echo two)", 0, "inner two\n"),
        ('i=1; while [ $i -lt 4 ]; do echo "n $i"; i=$((i+1)); done', 0, "n 1\nn 2\nn 3\n"),
        ("A=2; echo $(($A * (3 + $(echo 4)))) $((A++)) $A", 0, "14 2 3\n"),
        ("echo $( (echo a); (echo b) )", 0, "a b\n"),
        ("X=1; echo ${X}2 ${Y:-none} ${X:+set}", 0, "12 none set\n"),
        ("if [ -f /run/flannel/subnet.env ]; then echo there; else echo not; fi", 0, "there\n"),
        ("if test 3 -gt 4; then echo a; elif [ a = a ]; then echo b; fi", 0, "b\n"),
        ("i=; until [ x$i = xxx ]; do i=${i}x; echo $i; done", 0, "x\nxx\n"),
        ("for i in 1 2 3; do [ $i = 2 ] && continue; echo $i; done", 0, "1\n3\n"),
        ("while true; do echo once; break; done", 0, "once\n"),
        ("(cd /tmp; pwd); pwd", 0, "/tmp\n/\n"),
        ("{ echo a; echo b; } | tail -n 1", 0, "b\n"),
        ("echo text > /tmp/f; echo more >> /tmp/f; cat < /tmp/f", 0, "text\nmore\n"),
        ("exit 7", 7, ""),
        ("sh -c 'exit 3'; echo $?", 0, "3\n"),
        ("sh -c 'echo $1-$0' zero one", 0, "one-zero\n"),
        ("seq 1 100000 | head -n 2", 0, "1\n2\n"),
        ("seq 1 100000 | head -c 5", 0, "1\n2\n3"),
        ("echo abcdef | head -c3", 0, "abc"),
        ("echo abcdef | head -c -3", 0, "abcd"),
        ("echo abcdef | head -c 0", 0, ""),
        ("echo abcdef | tail -c 3", 0, "ef\n"),
        ("seq 1 100000 | tail -c 7", 0, "100000\n"),
        ("echo a;# comment\necho b", 0, "a\nb\n"),
        ("printf '%s=%d\\n' a 1 b 2", 0, "a=1\nb=2\n"),
        ("hostname; uname -n", 0, "w1\nw1\n"),
        ("date -u +%Y-%m-%d", 0, "2018-05-09\n"),
        ("nosuch 2> /dev/null || echo missing", 0, "missing\n"),
        ("nosuch 2>&1 | cat", 0, "sh: 1: nosuch: not found\n"),
        ("A=b env | grep ^A=", 0, "A=b\n"),
        ("echo b a c | xargs echo got", 0, "got b a c\n"),
        ("printf 'b\\na\\nb\\n' | sort | uniq -c", 0, "      1 a\n      2 b\n"),
        ("timeout 0.01 sleep 5; echo $?", 0, "124\n"),
    ],
)
async def test_scripts_do_what_a_shell_does(script: str, status: int, out: str) -> None:
    got, text, _ = await run(script)
    if "exit 7" not in script:
        # All clocks of one test move on by what it took; only the output is fixed.
        assert got == status
    assert text == out


async def test_exit_ends_with_its_status() -> None:
    assert (await run("echo a; exit 7; echo b"))[:2] == (7, "a\n")


@pytest.mark.parametrize(
    ("style", "text"), [("gnu", "sh: 1: foo: not found\n"), ("busybox", "sh: foo: not found\n")]
)
async def test_an_unknown_command_is_127(style: str, text: str) -> None:
    assert await run("foo --bar", style) == (127, "", text)


@pytest.mark.parametrize(
    "script",
    [
        "echo 'open",
        'echo "open',
        "for x in a; do echo",
        "if true; then",
        "| cat",
        "a && ",
        "(a",
        "}",
    ],
)
def test_a_syntax_error_is_said(script: str) -> None:
    with pytest.raises(UsageError, match="syntax error"):
        parse(script)


async def test_a_syntax_error_is_status_two() -> None:
    status, out, err = await run("echo 'open")
    assert (status, out) == (2, "")
    assert err == "sh: syntax error: unterminated quoted string\n"


async def test_standard_input_is_a_script() -> None:
    context, out, _ = make_context(stdin=b"X=5\necho $X\nexit 4\necho no\n")
    assert await run_command(context, ["sh"]) == 4
    assert out.text == "5\n"


async def test_a_missing_file_is_the_tool_s_own_complaint() -> None:
    assert await run("cat /nope") == (1, "", "cat: /nope: No such file or directory\n")
    assert (await run("cat /nope", "busybox"))[2] == (
        "cat: can't open '/nope': No such file or directory\n"
    )
    assert (await run("ls /nope"))[0] == 2


async def test_an_endless_writer_ends_with_its_reader() -> None:
    async with asyncio.timeout(30):
        assert (await run("while true; do echo y; done | head -n 1"))[1] == "y\n"


async def test_a_shell_that_calls_itself_for_ever_is_stopped() -> None:
    context, _, err = make_context()
    context.files.write("/tmp/loop", b"sh /tmp/loop")
    async with asyncio.timeout(30):
        await run_command(context, ["sh", "/tmp/loop"])
    assert "too many nested shells" in err.text


def test_memory_files_share_volumes_and_keep_limits() -> None:
    volume = MemoryFiles(lambda: 0.0, files={"/a/b": (b"1", 5.0)}, limit=10)
    one, two = MemoryFiles(lambda: 0.0), MemoryFiles(lambda: 0.0)
    one.mount("/data", volume)
    two.mount("/mnt/x", volume, sub_path="a", read_only=True)
    one.write("/data/a/new", b"xyz")
    assert two.read("/mnt/x/new") == b"xyz"
    assert two.listdir("/mnt/x") == ["b", "new"]
    assert one.listdir("/") == ["data"]
    with pytest.raises(OSError, match="Read-only file system"):
        two.write("/mnt/x/b", b"")
    with pytest.raises(OSError, match="No space left on device"):
        one.write("/data/a/big", b"0123456789")
    with pytest.raises(FileNotFoundError):
        one.write("/data/nodir/x", b"")


@pytest.mark.parametrize(
    "words",
    [
        "--", "-n -- a", "-x", "-nx", "-ne 'a\\tb'", "-eE 'a\\tb'", "-e 'a\\\\nb'",
        "-e '\\x41\\0101\\e[0m\\q\\'", "-e 'a\\cb' d", "-e 'a\\\\cb'", "-e '\\\\\\cb'", "-n",
    ],
)  # fmt: skip
def test_echo_writes_what_bash_writes(words: str) -> None:
    real = subprocess.run(["bash", "-c", f"echo {words}"], capture_output=True, check=True)
    assert asyncio.run(run(f"echo {words}")) == (0, real.stdout.decode(), "")


SCRIPTS = {
    "a loop over lines": "for i in 1 2\ndo\n echo $i\ndone\n",
    "a condition": "if true\nthen\n\n  echo yes # why\nelse\n echo no\nfi\n",
    "quotes over lines": "echo \"a\nb\" 'c\nd'\n",
    "a joined line": "echo a \\\n b\n",
    "joined by an operator": "true &&\necho and |\ncat\n",
    "a substitution": "echo $(\necho in\n)\n",
    "variables last": "X=5\nX=$((X + 1))\ncd /tmp\npwd\necho $X\n",
    "a here-document": 'X=5\ncat <<END; echo after\nx is $X "$(echo y)" \\$X\n\nEND\n',
    "a literal one": "cat <<'END'\n$X `y` \\$\nEND\n",
    "one with tabs": "cat <<-END\n\t\ta\n\tb\n\tEND\n",
    "two of them": "cat <<A; cat <<B\na\nA\nb\nB\n",
    "one in a loop": "for i in 1 2; do\ncat <<E\nn $i\nE\ndone\n",
    "piped": "cat <<E | wc -l\n1\n2\nE\n",
    "its own status": "false\n",
    "an end": "echo one\nexit 3\necho two\n",
    "no last end of line": "echo a\necho b",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_on_standard_input_does_what_it_does_in_bash(name: str) -> None:
    script = SCRIPTS[name].encode()
    real = subprocess.run(["bash"], input=script, capture_output=True, check=False)
    assert real.stderr == b""

    async def ours(*argv: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        context, out, err = make_context(stdin=stdin)
        return await run_command(context, ["sh", *argv]), out.text, err.text

    expected = (real.returncode, real.stdout.decode(), "")
    assert asyncio.run(ours(stdin=script)) == expected
    assert asyncio.run(ours("-c", script.decode())) == expected


async def test_a_shell_asks_for_the_rest_of_a_command_and_says_what_never_ends() -> None:
    context, out, err = make_context(stdin=b"if true\nthen echo a; fi\ncd /tmp\necho )\n(echo\n")
    asked: list[str] = []

    async def ask(prompt: str) -> None:
        asked.append(prompt)

    context.ask = ask
    assert await run_command(context, ["sh"]) == 2
    assert out.text == "a\n"
    assert asked == [
        "root@w1:/# ", "> ", "root@w1:/# ", "root@w1:/tmp# ", "root@w1:/tmp# ", "> "
    ]  # fmt: skip
    first, second = err.text.splitlines()
    assert first == 'sh: syntax error: unexpected ")"'
    assert "unexpected end of file" in second


class Typing:
    """A shell whose lines are edited elsewhere: what it asks for, and a way to answer."""

    def __init__(self) -> None:
        self.context, self.out, self.err = make_context()
        self.pipe = Pipe()
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.context.stdin, self.context.ask = self.pipe.reader, self.asked.put

    async def say(self, line: str) -> str:
        """Answer; return what is asked for next."""
        self.pipe.write(f"{line}\n".encode())
        return await self.asked.get()


async def test_a_command_at_the_prompt_reads_lines_until_ctrl_d_or_ctrl_c() -> None:
    typing = Typing()
    async with asyncio.timeout(5):
        shell = asyncio.create_task(run_command(typing.context, ["sh"]), name="shell")
        assert await typing.asked.get() == "root@w1:/# "
        assert await typing.say("cat | sort") == ""
        assert await typing.say("b") == ""
        assert await typing.say("a") == ""
        assert await typing.say(END_OF_INPUT) == "root@w1:/# "
        assert typing.out.text == "a\nb\n"
        assert await typing.say("grep x") == ""
        typing.context.interrupt.set()
        assert await typing.asked.get() == "root@w1:/# "
        # What reads a pipe asks nobody.
        assert await typing.say("echo $?; echo echo hi | sh") == "root@w1:/# "
        assert typing.out.text == "a\nb\n130\nhi\n"
        typing.pipe.write(f"{END_OF_INPUT}\n".encode())
        assert await shell == 0


async def test_ctrl_c_ends_what_waits_for_input_and_a_script_with_it() -> None:
    context, out, _ = make_context()
    pipe = Pipe()
    context.stdin = pipe.reader
    script = asyncio.create_task(run_command(context, ["sh", "-c", "cat; echo never"]), name="c")
    pipe.write(b"one\n")
    while not out.text:
        await asyncio.sleep(0)
    context.interrupt.set()
    assert await script == 130
    assert out.text == "one\n"
    context.interrupt.clear()
    script = asyncio.create_task(run_command(context, ["sh"]), name="stdin")
    pipe.write(b"sleep 100\necho never\n")
    async with asyncio.timeout(5):
        while not script.done():
            context.interrupt.set()
            await asyncio.sleep(0)
    assert (script.result(), out.text) == (130, "one\n")


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("cat <<E", "E"), ("echo '", "'"), ('echo "', '"'), ("for i in 1; do", "done"), ("(", ")")],
)
async def test_many_lines_are_read_in_the_time_they_take(opening: str, closing: str) -> None:
    line = "x" * 60 if opening.startswith(("cat", "echo")) else "echo " + "x" * 60
    script = "\n".join([opening, *[line] * 3000, closing, "exit 3", ""])
    context, out, _ = make_context(stdin=script.encode())
    began = time.process_time()
    assert await run_command(context, ["sh"]) == 3
    assert time.process_time() - began < 2
    assert out.text.count("x" * 60) == 3000


async def test_commands_within_commands_have_an_end() -> None:
    for script in ("(" * 3000, "{ " * 3000, "if " * 3000, "while " * 3000):
        status, _, err = await run(script)
        assert (status, "more than 20 commands within commands" in err) == (2, True)
    assert await run("(" * 19 + "echo deep" + ")" * 19) == (0, "deep\n", "")


async def test_an_escaped_end_of_line_is_none_within_quotes_either() -> None:
    assert await run('echo "a\\\nb" c\\\nd') == (0, "ab cd\n", "")


async def test_only_blanks_tabs_and_ends_of_lines_separate_words() -> None:
    script = "X=$(printf 'a\\rb c'); for w in $X d\u00a0e f\rg; do echo \"[$w]\"; done;#;x"
    assert await run(script) == (0, "[a\rb]\n[c]\n[d\u00a0e]\n[f\rg]\n", "")


def test_backquotes_within_backquotes_are_escaped() -> None:
    script = "NAME=world; echo `echo \\`echo a\\` '\\\\x' \\$NAME`"
    real = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    assert real.stdout == b"a \\x world\n"
    assert asyncio.run(run(script)) == (0, real.stdout.decode(), "")
