"""wget: GNU's texts (1.21, not on a terminal) and busybox's."""

from __future__ import annotations

import asyncio
import datetime
import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from emulator.errors import UsageError
from emulator.shell.context import os_error_text, seconds_of, whole_number
from emulator.shell.http import BadReplyError, EmptyReplyError, Exchange, ShortBodyError, Url
from emulator.shell.names import ResolveError, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from emulator.shell.context import ShellContext
    from emulator.shell.http import Head

MAX_REDIRECTS = 20
# wget's --tries; the emulated network gives up on its own much sooner.
DEFAULT_TRIES = 20
GNU_TIMEOUT_S = 900.0
_DOTS_PER_LINE_BYTES = 50 * 1024
GNU_USAGE = """wget: missing URL
Usage: wget [OPTION]... [URL]...

Try `wget --help' for more options.
"""
BUSYBOX_USAGE = """BusyBox v1.36.1 (2024-06-10 07:11:47 UTC) multi-call binary.

Usage: wget [-cqS] [--spider] [-O FILE] [-o LOGFILE] [--header STR]
\t[--post-data STR | --post-file FILE] [-Y on/off]
\t[--no-check-certificate] [-P DIR] [-U AGENT] [-T SEC] URL...

Retrieve files via HTTP or FTP

\t--spider\tOnly check URL existence: $? is 0 if exists
\t--header STR\tAdd STR (of form 'header: value') to headers
\t--post-data STR\tSend STR using POST method
\t--no-check-certificate\tDon't validate the server's certificate
\t-c\t\tContinue retrieval of aborted transfer
\t-q\t\tQuiet
\t-P DIR\t\tSave to DIR (default .)
\t-S    \t\tShow server response
\t-T SEC\t\tNetwork read timeout is SEC seconds
\t-O FILE\t\tSave to FILE ('-' for stdout)
\t-o LOGFILE\tLog messages to FILE
\t-U STR\t\tUse STR for User-Agent header
\t-Y on/off\tUse proxy
"""


@dataclass(slots=True)
class Options:
    """The command line; ``timeout_s`` 0 waits as long as the stack does."""

    urls: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    output: str = ""
    directory: str = ""
    agent: str = ""
    post: str = ""
    quiet: bool = False
    server_response: bool = False
    spider: bool = False
    timeout_s: float = 0.0
    tries: int = DEFAULT_TRIES


class _FailureError(Exception):
    """The retrieval failed; ``again`` when another try may help."""

    def __init__(self, code: int, text: str, *, again: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.again = again


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line; UsageError names the option."""
    options = Options()
    words = list(argv[1:])

    def value(given: str) -> str:
        if given:
            return given
        if not words:
            raise UsageError(argv[0])
        return words.pop(0)

    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            options.urls.append(word)
            continue
        if word.startswith("--"):
            name, _, given = word[2:].partition("=")
        else:
            name, given = word[1], word[2:]
            while name in ("q", "S", "c", "nv", "4") and given:
                _flag(options, name)
                name, given = given[0], given[1:]
        match name:
            case "O" | "output-document":
                options.output = value(given)
            case "P" | "directory-prefix":
                options.directory = value(given)
            case "T" | "timeout" | "connect-timeout" | "read-timeout":
                options.timeout_s = _number(value(given), word)
            case "t" | "tries":
                options.tries = int(_number(value(given), word)) or DEFAULT_TRIES
            case "U" | "user-agent":
                options.agent = value(given)
            case "header":
                options.headers.append(value(given))
            case "post-data":
                options.post = value(given)
            case "o" | "output-file" | "Y" | "w" | "wait":
                value(given)
            case _ if not _flag(options, name):
                raise UsageError(word)
    return options


def _flag(options: Options, name: str) -> bool:
    match name:
        case "q" | "quiet":
            options.quiet = True
        case "S" | "server-response":
            options.server_response = True
        case "spider":
            options.spider = True
        case "c" | "no-check-certificate" | "no-verbose" | "n" | "4" | "continue":
            pass
        case _:
            return False
    return True


def _number(text: str, word: str) -> float:
    number = seconds_of(text)
    if number is None:
        raise UsageError(word)
    return number


async def wget(ctx: ShellContext, argv: Sequence[str]) -> int:
    """The command, in the flavour of the context's tools."""
    busybox = ctx.style == "busybox"
    try:
        options = parse_options(argv)
    except UsageError as error:
        if busybox:
            ctx.err(f"wget: unrecognized option: {str(error).lstrip('-')}\n{BUSYBOX_USAGE}")
            return 1
        ctx.err(f"wget: unrecognized option '{error}'\n" + GNU_USAGE.partition("\n")[2])
        return 2
    if not options.urls:
        ctx.err(BUSYBOX_USAGE if busybox else GNU_USAGE)
        return 1
    status = 0
    for url in options.urls:
        if (code := await (_busybox if busybox else _gnu)(ctx, options, url)) != 0:
            status = code
    return status


def _stamp(ctx: ShellContext) -> str:
    moment = datetime.datetime.fromtimestamp(ctx.clock.time(), datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}"


async def _gnu(ctx: ShellContext, options: Options, text: str) -> int:
    say = (lambda line: None) if options.quiet else ctx.err
    shown = text if "://" in text else f"http://{text}"
    if shown.count("/") < 3:
        shown += "/"
    for attempt in range(1, options.tries + 1):
        again = f"(try:{attempt:2d})  " if attempt > 1 else ""
        say(f"--{_stamp(ctx)}--  {again}{shown}\n")
        try:
            await _gnu_once(ctx, options, shown, say)
        except _FailureError as error:
            say(f"{error}\n")
            if not error.again:
                return error.code
            say("Retrying.\n\n" if attempt < options.tries else "Giving up.\n\n")
            if attempt < options.tries:
                await asyncio.sleep(min(attempt, 10))
            continue
        return 0
    return 4


async def _gnu_once(
    ctx: ShellContext, options: Options, shown: str, say: Callable[[str], None]
) -> None:
    for _ in range(MAX_REDIRECTS):
        url = _url(shown)
        address = await _address(ctx, url, say)
        place = f"{url.host}:{url.port}"
        if address != url.host:
            place = f"{url.host} ({url.host})|{address}|:{url.port}"
        say(f"Connecting to {place}... ")
        async with Exchange(ctx.network, address, url.port) as exchange:
            try:
                async with asyncio.timeout(options.timeout_s or GNU_TIMEOUT_S):
                    await exchange.connect()
            except OSError as error:
                text = (
                    "Connection timed out"
                    if isinstance(error, TimeoutError)
                    else os_error_text(error)
                )
                # wget tries again only after a time-out: refusals and missing routes are final.
                raise _FailureError(
                    4, f"failed: {text}.", again=text == "Connection timed out"
                ) from None
            say("connected.\nHTTP request sent, awaiting response... ")
            method, head = await _ask(ctx, options, exchange, url)
            say(f"{head.status} {head.reason}\n")
            if options.server_response:
                say("".join(f"  {line}\n" for line in head.lines))
            location = head.get("Location")
            if 300 <= head.status < 400 and location:
                say(f"Location: {location} [following]\n")
                shown = _joined(shown, location)
                say(f"--{_stamp(ctx)}--  {shown}\n")
                continue
            if head.status >= 400:
                raise _FailureError(8, f"{_stamp(ctx)} ERROR {head.status}: {head.reason}.\n")
            await _gnu_save(ctx, options, exchange, method, head, url, say)
            return
    raise _FailureError(8, f"{MAX_REDIRECTS} redirections exceeded.")


def _joined(base: str, location: str) -> str:
    """Where a page sends its reader."""
    try:
        return urljoin(base if "://" in base else f"http://{base}", location)
    except ValueError:
        raise _FailureError(1, f"{location}: Invalid host name.\n") from None


async def _gnu_save(
    ctx: ShellContext,
    options: Options,
    exchange: Exchange,
    method: str,
    head: Head,
    url: Url,
    say: Callable[[str], None],
) -> None:
    length, kind = head.get("Content-Length"), head.get("Content-Type").partition(";")[0]
    size = whole_number(length)
    known = f"{length}{_human(size)}" if size is not None else "unspecified"
    say(f"Length: {known} [{kind}]\n" if kind else f"Length: {known}\n")
    if options.spider:
        say("Remote file exists.\n\n")
        return
    name = options.output or _file_name(url, options)
    to_stdout = name == "-"
    if not options.output:
        name = _unused(ctx, name)
    say(f"Saving to: ‘{'STDOUT' if to_stdout else name}’\n\n")
    began = ctx.clock.monotonic()
    data = await _read_all(exchange, method, head)
    took = max(ctx.clock.monotonic() - began, 1e-6)
    await _write(ctx, name, data)
    say(_dots(len(data), took))
    done = "written to stdout" if to_stdout else f"‘{name}’ saved"
    total = f"{len(data)}/{length}" if size is not None else str(len(data))
    say(f"{_stamp(ctx)} ({_rate(len(data) / took)}) - {done} [{total}]\n\n")


def _dots(size: int, took: float) -> str:
    """The dot-style progress of a transfer that is not on a terminal."""
    lines = []
    done = 0
    while True:
        row = min(size - done, _DOTS_PER_LINE_BYTES)
        dots = "." * (row // 1024)
        groups = " ".join(dots[index : index + 10] for index in range(0, 50, 10)).rstrip()
        done += row
        percent = round(done * 100 / size) if size else 100
        tail = f"{percent:3d}% {_short_rate(size / took):>5}"
        last = done >= size
        start = (done - row) // 1024
        lines.append(f"{start:6d}K {groups:<54}{tail}{'=' if last else ' 0s'}")
        if last:
            return "\n".join(lines) + f"{_seconds(took)}\n\n"


def _seconds(took: float) -> str:
    if took < 0.001:
        return "0s"
    return f"{took:.3f}s" if took < 1 else f"{took:.1f}s"


def _short_rate(rate: float) -> str:
    for unit in ("", "K", "M"):
        if rate < 1024:
            return f"{_three_digits(rate)}{unit}" if unit else f"{rate:.0f}"
        rate /= 1024
    return f"{_three_digits(rate)}G"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _rate(rate: float) -> str:
    for unit in ("B/s", "KB/s", "MB/s"):
        if rate < 1024:
            return f"{_three_digits(rate)} {unit}"
        rate /= 1024
    return f"{_three_digits(rate)} GB/s"


def _human(size: int) -> str:
    for unit in ("", "K", "M"):
        if size < 1024:
            return f" ({size}{unit})" if unit else ""
        size //= 1024
    return f" ({size}G)"


async def _busybox(ctx: ShellContext, options: Options, text: str) -> int:
    say = (lambda line: None) if options.quiet else ctx.err
    try:
        url = _url(text)
        for _ in range(MAX_REDIRECTS):
            try:
                address = await resolve(ctx, url.host)
            except ResolveError:
                raise _FailureError(1, f"bad address '{url.host}'") from None
            say(f"Connecting to {url.authority} ({address}:{url.port})\n")
            async with Exchange(ctx.network, address, url.port) as exchange:
                await _busybox_connect(exchange, options, address)
                method, head = await _ask(ctx, options, exchange, url)
                if options.server_response:
                    say("".join(f"  {line}\n" for line in head.lines))
                location = head.get("Location")
                if 300 <= head.status < 400 and location:
                    # It knows no paths relative to the page: anything else names a host.
                    same = location.startswith("/")
                    url = _url(f"{url.authority}{location}" if same else location)
                    continue
                if head.status >= 400:
                    raise _FailureError(1, f"server returned error: {head.lines[0]}")
                await _busybox_save(ctx, options, exchange, method, head, url)
                return 0
        raise _FailureError(1, "too many redirections")
    except _FailureError as error:
        ctx.err(f"wget: {error}\n")
        return 1


async def _busybox_connect(exchange: Exchange, options: Options, address: str) -> None:
    try:
        async with asyncio.timeout(options.timeout_s or None) as limit:
            await exchange.connect()
    except OSError as error:
        if isinstance(error, TimeoutError) and limit.expired():
            raise _FailureError(1, "download timed out") from None
        raise _FailureError(
            1, f"can't connect to remote host ({address}): {os_error_text(error)}"
        ) from None


async def _busybox_save(
    ctx: ShellContext,
    options: Options,
    exchange: Exchange,
    method: str,
    head: Head,
    url: Url,
) -> None:
    say = (lambda line: None) if options.quiet else ctx.err
    if options.spider:
        say("remote file exists\n")
        return
    name = options.output or _file_name(url, options)
    if name != "-" and not options.output and ctx.files.exists(ctx.path(name)):
        raise _FailureError(1, f"can't open '{name}': File exists")
    say("writing to stdout\n" if name == "-" else f"saving to '{name}'\n")
    data = await _read_all(exchange, method, head)
    await _write(ctx, name, data)
    say(f"{name:<20} 100% |{'*' * 32}| {len(data):5d}  0:00:00 ETA\n")
    say("written to stdout\n" if name == "-" else f"'{name}' saved\n")


def _url(text: str) -> Url:
    try:
        url = Url.parse(text)
    except ValueError:
        raise _FailureError(1, f"{text}: Invalid host name.") from None
    if url.scheme != "http":
        raise _FailureError(1, f"{text}: Unsupported scheme ‘{url.scheme}’.")
    return url


async def _address(ctx: ShellContext, url: Url, say: Callable[[str], None]) -> str:
    literal = url.host.replace(".", "").isdigit()
    if not literal:
        say(f"Resolving {url.host} ({url.host})... ")
    try:
        address = await resolve(ctx, url.host)
    except ResolveError:
        raise _FailureError(
            4,
            "failed: Name or service not known.\n"
            f"wget: unable to resolve host address ‘{url.host}’",
        ) from None
    if not literal:
        say(f"{address}\n")
    return address


async def _ask(
    ctx: ShellContext, options: Options, exchange: Exchange, url: Url
) -> tuple[str, Head]:
    busybox = ctx.style == "busybox"
    method = "POST" if options.post else "HEAD" if options.spider else "GET"
    agent = options.agent or ("Wget" if busybox else "Wget/1.21.3")
    headers = [("Host", url.authority), ("User-Agent", agent)]
    if not busybox:
        headers += [("Accept", "*/*"), ("Accept-Encoding", "identity")]
    headers.append(("Connection", "close" if busybox else "Keep-Alive"))
    for header in options.headers:
        name, _, value = header.partition(":")
        headers.append((name.strip(), value.strip()))
    body = options.post.encode()
    if body:
        headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        headers.append(("Content-Length", str(len(body))))
    try:
        async with asyncio.timeout(options.timeout_s or GNU_TIMEOUT_S):
            await exchange.send(method, url.target, headers, body)
            return method, await exchange.head()
    except TimeoutError:
        text = "download timed out" if busybox else "Read error (Connection timed out) in headers."
        raise _FailureError(1 if busybox else 4, text, again=not busybox) from None
    except EmptyReplyError:
        text = "error getting response" if busybox else "No data received."
        raise _FailureError(1 if busybox else 4, text, again=not busybox) from None
    except BadReplyError as error:
        raise _FailureError(1 if busybox else 8, f"bad response: {error}") from None
    except OSError as error:
        text = (
            "error getting response"
            if busybox
            else f"Read error ({os_error_text(error)}) in headers."
        )
        raise _FailureError(1 if busybox else 4, text, again=not busybox) from None


async def _read_all(exchange: Exchange, method: str, head: Head) -> bytes:
    data = bytearray()
    try:
        async for part in exchange.body(method, head):
            data += part
    except ShortBodyError as error:
        raise _FailureError(4, f"connection closed with {error.missing} bytes missing") from None
    except OSError as error:
        raise _FailureError(4, f"Read error ({os_error_text(error)}).") from None
    return bytes(data)


def _file_name(url: Url, options: Options) -> str:
    name = url.target.partition("?")[0].rpartition("/")[2] or "index.html"
    return posixpath.join(options.directory, name) if options.directory else name


def _unused(ctx: ShellContext, name: str) -> str:
    """GNU wget keeps an existing file and numbers the new one."""
    candidate, number = name, 0
    while ctx.files.exists(ctx.path(candidate)):
        number += 1
        candidate = f"{name}.{number}"
    return candidate


async def _write(ctx: ShellContext, name: str, data: bytes) -> None:
    if name == "-":
        ctx.stdout.write(data)
        await ctx.stdout.drain()
        return
    try:
        ctx.files.write(ctx.path(name), data)
    except OSError as error:
        raise _FailureError(3, f"{name}: {os_error_text(error)}") from None
