"""Runs a shell's tree: expansion, pipelines, redirections, control flow."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from emulator.errors import UsageError
from emulator.shell.arithmetic import evaluate
from emulator.shell.context import (
    MAX_EXPANSION_BYTES,
    Buffer,
    Pipe,
    os_error_text,
    whole_number,
)
from emulator.shell.parse import (
    AndOr,
    For,
    Group,
    If,
    Loop,
    Pipeline,
    Redirect,
    Simple,
    parse,
)
from emulator.shell.tokens import BLANKS, expression_parts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from emulator.shell.context import ByteSink, ShellContext
    from emulator.shell.parse import Node, Script
    from emulator.shell.tokens import Word

    Runner = Callable[[ShellContext, Sequence[str]], Awaitable[int]]

# Shells within shells: a substitution that calls itself must end.
MAX_DEPTH = 20
EXIT_SIGINT = 130
EXIT_SYNTAX = 2
_FIELD = re.compile(f"[^{BLANKS}]+")


class ShellExitError(Exception):
    """``exit N`` was run."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _LoopControlError(Exception):
    """``break`` (or, with ``again``, ``continue``)."""

    def __init__(self, *, again: bool) -> None:
        super().__init__(again)
        self.again = again


class _FileSink:
    """Standard output into a file; errors surface at the write, as EPIPE would."""

    def __init__(self, ctx: ShellContext, path: str) -> None:
        self._ctx = ctx
        self._path = path

    def write(self, data: bytes) -> None:
        self._ctx.files.write(self._path, data, append=True)

    async def drain(self) -> None:
        await asyncio.sleep(0)


class Interpreter:
    """One shell; ``run_command`` runs what is not a builtin of the shell itself."""

    def __init__(self, run_command: Runner, *, arguments: Sequence[str] = ("sh",)) -> None:
        self._run_command = run_command
        self._arguments = list(arguments)

    async def run_text(self, ctx: ShellContext, text: str) -> int:
        """Run a script; its exit status.  A syntax error is 2."""
        if ctx.depth > MAX_DEPTH:
            ctx.err(f"sh: too many nested shells ({MAX_DEPTH})\n")
            return 2
        try:
            tree = parse(text)
        except UsageError as error:
            ctx.err(f"sh: {error}\n")
            return 2
        return await self._subshell(ctx, self._sequence(ctx, tree))

    async def run_tree(self, ctx: ShellContext, tree: Script) -> int:
        """Run a part of a script; ShellExitError where it ends the shell."""
        return await self._to_the_end(ctx, self._sequence(ctx, tree))

    async def _subshell(self, ctx: ShellContext, work: Awaitable[int]) -> int:
        """What ends a shell, or a part of one that is a process of its own, ends nothing else."""
        try:
            return await self._to_the_end(ctx, work)
        except ShellExitError as exit_:
            return exit_.status

    @staticmethod
    async def _to_the_end(ctx: ShellContext, work: Awaitable[int]) -> int:
        try:
            return await work
        except _LoopControlError:
            return 0
        except UsageError as error:
            ctx.err(f"sh: {error}\n")
            return EXIT_SYNTAX

    async def _sequence(self, ctx: ShellContext, tree: Script) -> int:
        status = ctx.status
        for item in tree.items:
            status = ctx.status = await self._and_or(ctx, item)
            if ctx.interrupt.is_set():
                return EXIT_SIGINT
        return status

    async def _and_or(self, ctx: ShellContext, tree: AndOr) -> int:
        status = 0
        for operator, pipeline in tree.parts:
            if (operator == "&&" and status != 0) or (operator == "||" and status == 0):
                continue
            status = ctx.status = await self._pipeline(ctx, pipeline)
        return status

    async def _pipeline(self, ctx: ShellContext, tree: Pipeline) -> int:
        if len(tree.commands) == 1:
            status = await self._node(ctx, tree.commands[0])
        else:
            status = await self._piped(ctx, tree.commands)
        return int(status == 0) if tree.negated else status

    async def _piped(self, ctx: ShellContext, commands: Sequence[Node]) -> int:
        pipes = [Pipe() for _ in commands[:-1]]
        tasks: list[asyncio.Task[int]] = []
        async with asyncio.TaskGroup() as group:
            for index, command in enumerate(commands):
                source = pipes[index - 1] if index else None
                sink = pipes[index] if index < len(pipes) else None
                tasks.append(
                    group.create_task(
                        self._stage(ctx.subshell(), command, source, sink),
                        name=f"shell.pipe.{index}",
                    )
                )
        return tasks[-1].result()

    async def _stage(
        self, ctx: ShellContext, command: Node, source: Pipe | None, sink: Pipe | None
    ) -> int:
        part = ctx.redirected(stdin=source.reader if source else None, stdout=sink)
        try:
            return await self._subshell(part, self._node(part, command))
        except BrokenPipeError:
            return 128 + 13
        finally:
            if sink is not None:
                sink.close_write()
            if source is not None:
                source.close_read()

    async def _node(self, ctx: ShellContext, node: Node) -> int:
        match node:
            case Simple():
                return await self._simple(ctx, node)
            case Loop():
                return await self._loop(ctx, node)
            case For():
                return await self._for(ctx, node)
            case If():
                for condition, body in node.branches:
                    if await self._sequence(ctx, condition) == 0:
                        return await self._sequence(ctx, body)
                return await self._sequence(ctx, node.otherwise) if node.otherwise else 0
            case Group():
                if not node.subshell:
                    return await self._sequence(ctx, node.body)
                inner = ctx.subshell()
                return await self._subshell(inner, self._sequence(inner, node.body))

    async def _loop(self, ctx: ShellContext, node: Loop) -> int:
        status = 0
        while (await self._sequence(ctx, node.condition) == 0) != node.until:
            # A loop of builtins alone must still let the node's other tasks run.
            await asyncio.sleep(0)
            if ctx.interrupt.is_set():
                return EXIT_SIGINT
            try:
                status = await self._sequence(ctx, node.body)
            except _LoopControlError as control:
                if not control.again:
                    break
        return status

    async def _for(self, ctx: ShellContext, node: For) -> int:
        status = 0
        for value in await self._fields(ctx, node.words):
            await asyncio.sleep(0)
            if ctx.interrupt.is_set():
                return EXIT_SIGINT
            ctx.env[node.name] = value
            try:
                status = await self._sequence(ctx, node.body)
            except _LoopControlError as control:
                if not control.again:
                    break
        return status

    async def _simple(self, ctx: ShellContext, node: Simple) -> int:
        values = [(name, await self._text(ctx, word)) for name, word in node.assignments]
        words = await self._fields(ctx, node.words)
        try:
            inner = await self._redirect(ctx, node.redirects)
        except OSError as error:
            name = "sh: can't create" if error.errno != 2 else "sh: can't open"
            ctx.err(f"{name} {error.filename}: {os_error_text(error)}\n")
            return 1
        if not words:
            ctx.env.update(values)
            return ctx.status if values and ctx.status else 0
        if values:
            inner.env = inner.env | dict(values)
        if (status := await self._builtin(ctx, inner, words)) is not None:
            return status
        return await self._run_command(inner, words)

    async def _builtin(
        self, ctx: ShellContext, inner: ShellContext, words: Sequence[str]
    ) -> int | None:
        match words[0]:
            case "exit":
                status: int | None = ctx.status
                if len(words) > 1:
                    status = whole_number(words[1])
                if status is None:
                    inner.err(f"sh: exit: Illegal number: {words[1]}\n")
                    status = EXIT_SYNTAX
                raise ShellExitError(status & 255)
            case "break" | "continue":
                raise _LoopControlError(again=words[0] == "continue")
            case ":":
                return 0
            case "cd":
                target = ctx.path(words[1] if len(words) > 1 else ctx.env.get("HOME", "/"))
                if not ctx.files.is_dir(target):
                    inner.err(f"sh: cd: can't cd to {words[1]}: No such file or directory\n")
                    return 2
                ctx.cwd = target
                return 0
            case "export":
                for word in words[1:]:
                    name, equals, value = word.partition("=")
                    if equals:
                        ctx.env[name] = value
                return 0
            case "unset":
                for name in words[1:]:
                    ctx.env.pop(name, None)
                return 0
            case "set" | "trap" | "umask":
                return 0
            case "exec" if len(words) > 1:
                raise ShellExitError(await self._run_command(inner, words[1:]))
            case "eval":
                return await self.run_text(inner, " ".join(words[1:]))
        return None

    async def _redirect(self, ctx: ShellContext, redirects: Sequence[Redirect]) -> ShellContext:
        stdin, stdout, stderr = ctx.stdin, ctx.stdout, ctx.stderr
        for redirect in redirects:
            if redirect.mode == "&1":
                stderr = stdout
            elif redirect.mode == "&2":
                stdout = stderr
            elif redirect.fd == 0:
                text = await self._text(ctx, redirect.target)
                here = redirect.mode == "<<"
                stdin = asyncio.StreamReader()
                stdin.feed_data(text.encode() if here else ctx.files.read(ctx.path(text)))
                stdin.feed_eof()
            else:
                path = ctx.path(await self._text(ctx, redirect.target))
                if redirect.mode == ">" or not ctx.files.exists(path):
                    ctx.files.write(path, b"")
                sink: ByteSink = _FileSink(ctx, path)
                if redirect.fd == 1:
                    stdout = sink
                else:
                    stderr = sink
        return ctx.redirected(stdin=stdin, stdout=stdout, stderr=stderr)

    async def _fields(self, ctx: ShellContext, words: Sequence[Word]) -> list[str]:
        fields: list[str] = []
        for word in words:
            fields += await self._split(ctx, word)
        return fields

    async def _split(self, ctx: ShellContext, word: Word) -> list[str]:
        """Expand one word; unquoted expansions are split at white space."""
        fields: list[str] = []
        current: str | None = None
        for part in word:
            value = await self._part(ctx, part.kind, part.text)
            if part.quoted or part.kind == "text":
                current = (current or "") + value
                continue
            pieces = _FIELD.findall(value)
            if not pieces:
                continue
            if value[0] in BLANKS and current is not None:
                fields.append(current)
                current = None
            fields += [] if len(pieces) == 1 else [(current or "") + pieces[0], *pieces[1:-1]]
            current = pieces[-1] if len(pieces) > 1 else (current or "") + pieces[0]
            if value[-1] in BLANKS:
                fields.append(current)
                current = None
        if current is not None:
            fields.append(current)
        return fields

    async def _text(self, ctx: ShellContext, word: Word) -> str:
        text = "".join([await self._part(ctx, part.kind, part.text) for part in word])
        if len(text) > MAX_EXPANSION_BYTES:
            raise UsageError(f"a word of more than {MAX_EXPANSION_BYTES} bytes")
        return text

    async def _part(self, ctx: ShellContext, kind: str, text: str) -> str:
        if kind == "text":
            return text
        if kind == "sub":
            buffer = Buffer()
            inner = ctx.subshell().redirected(stdout=buffer)
            ctx.status = await self.run_text(inner, text)
            return buffer.text.rstrip("\n")
        if kind == "math":
            # ``$name`` and ``name`` are the same inside; ``$1`` and ``$(…)`` are not names.
            text = "".join(
                [await self._part(ctx, each.kind, each.text) for each in expression_parts(text)]
            )
            return str(evaluate(text, ctx.env))
        return self._parameter(ctx, text)

    def _parameter(self, ctx: ShellContext, text: str) -> str:
        match text:
            case "?":
                return str(ctx.status)
            case "$":
                return "1"
            case "#":
                return str(len(self._arguments) - 1)
            case "@" | "*":
                return " ".join(self._arguments[1:])
        if (index := whole_number(text)) is not None:
            return self._arguments[index] if index < len(self._arguments) else ""
        for operator in (":-", ":=", ":+", "-", "="):
            name, found, default = text.partition(operator)
            if found and name.isidentifier():
                value = ctx.env.get(name)
                missing = value is None or (operator.startswith(":") and not value)
                if operator == ":+":
                    return "" if missing else default
                if missing and operator.endswith("="):
                    ctx.env[name] = default
                return default if missing else value or ""
        return ctx.env.get(text, "")
