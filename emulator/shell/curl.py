"""curl: texts and exit codes of 7.88 (modern) side by side with 7.29's user agent of 2017."""

from __future__ import annotations

import asyncio
import errno
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from emulator.errors import UsageError
from emulator.shell.context import os_error_text, seconds_of
from emulator.shell.http import BadReplyError, EmptyReplyError, Exchange, ShortBodyError, Url
from emulator.shell.names import ResolveError, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.shell.context import ShellContext
    from emulator.shell.http import Head

# Follow at most so many redirects (CURLOPT_MAXREDIRS of the tool).
MAX_REDIRECTS = 50
_VALUED = {
    "-o": "output", "--output": "output", "-w": "write_out", "--write-out": "write_out",
    "-m": "max_time", "--max-time": "max_time", "--connect-timeout": "connect_timeout",
    "-H": "header", "--header": "header", "-X": "method", "--request": "method",
    "-d": "data", "--data": "data", "--data-raw": "data", "--data-binary": "data",
    "-A": "agent", "--user-agent": "agent", "--retry": "ignored", "--retry-delay": "ignored",
    "--resolve": "resolve", "--interface": "interface", "--max-redirs": "ignored",
    "--cacert": "cacert", "-e": "referer", "--referer": "referer", "--url": "url",
}  # fmt: skip
_FLAGS = {
    "-s": "silent", "--silent": "silent", "-S": "show_error", "--show-error": "show_error",
    "-v": "verbose", "--verbose": "verbose", "-I": "head", "--head": "head",
    "-i": "include", "--include": "include", "-L": "location", "--location": "location",
    "-f": "fail", "--fail": "fail", "-k": "insecure", "--insecure": "insecure",
    "-4": "ipv4", "--ipv4": "ipv4", "-G": "get", "--get": "get", "-N": "no_buffer",
    "--no-buffer": "no_buffer", "-0": "http10", "--http1.0": "http10", "-O": "remote_name",
    "-g": "globoff", "--compressed": "compressed", "--no-progress-meter": "silent_meter",
}  # fmt: skip
_HELP = "curl: try 'curl --help' or 'curl --manual' for more information\n"
USAGE = """Usage: curl [options...] <url>
 -d, --data <data>          HTTP POST data
 -f, --fail                 Fail fast with no output on HTTP errors
 -h, --help <category>      Get help for commands
 -i, --include              Include protocol response headers in the output
 -o, --output <file>        Write to file instead of stdout
 -O, --remote-name          Write output to a file named as the remote file
 -s, --silent               Silent mode
 -T, --upload-file <file>   Transfer local FILE to destination
 -u, --user <user:password> Server user and password
 -A, --user-agent <name>    Send User-Agent <name> to server
 -v, --verbose              Make the operation more talkative
 -V, --version              Show version number and quit

This is not the full help, this menu is stripped into categories.
Use "--help category" to get an overview of all categories.
For all options use the manual or "--help all".
"""


class CurlError(Exception):
    """A transfer failed: curl's exit code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Options:
    """The command line."""

    urls: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    resolve: list[str] = field(default_factory=list)
    flags: dict[str, bool] = field(default_factory=dict)
    output: str = ""
    write_out: str = ""
    method: str = ""
    agent: str = ""
    referer: str = ""
    interface: str = ""
    cacert: str = ""
    max_time: float = 0.0
    connect_timeout: float = 0.0

    def on(self, name: str) -> bool:
        """True if the flag was given."""
        return self.flags.get(name, False)


@dataclass(slots=True)
class Transfer:
    """What ``-w`` can tell of one transfer; times in seconds since its start."""

    url: str
    started: float
    status: int = 0
    remote_ip: str = ""
    remote_port: int = 0
    local: tuple[str, int] = ("", 0)
    size: int = 0
    header_size: int = 0
    connect_s: float = 0.0
    pretransfer_s: float = 0.0
    first_byte_s: float = 0.0
    total_s: float = 0.0
    redirects: int = 0
    content_type: str = ""


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line; UsageError with curl's own complaint."""
    options = Options()
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            options.urls.append(word)
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            if equals and name in _VALUED:
                words.insert(0, value)
                word = name
            _long(options, word, words)
        else:
            _short(options, word, words)
    return options


def _long(options: Options, word: str, words: list[str]) -> None:
    if word in _FLAGS:
        options.flags[_FLAGS[word]] = True
    elif word in _VALUED:
        _value(options, word, words)
    else:
        raise UsageError(f"curl: option {word}: is unknown\n{_HELP}")


def _short(options: Options, word: str, words: list[str]) -> None:
    for index, letter in enumerate(word[1:], 1):
        flag = f"-{letter}"
        if flag in _FLAGS:
            options.flags[_FLAGS[flag]] = True
        elif flag in _VALUED:
            if word[index + 1 :]:
                words.insert(0, word[index + 1 :])
            _value(options, flag, words)
            return
        else:
            raise UsageError(f"curl: option {word}: is unknown\n{_HELP}")


def _value(options: Options, flag: str, words: list[str]) -> None:
    if not words:
        raise UsageError(f"curl: option {flag}: requires parameter\n{_HELP}")
    value, name = words.pop(0), _VALUED[flag]
    if name in ("max_time", "connect_timeout"):
        seconds = seconds_of(value)
        if seconds is None:
            raise UsageError(f"curl: option {flag}: expected a proper numerical parameter\n{_HELP}")
        setattr(options, name, seconds)
    elif name == "header":
        options.headers.append(value)
    elif name in ("data", "resolve"):
        getattr(options, name).append(value)
    elif name == "url":
        options.urls.append(value)
    elif name != "ignored":
        setattr(options, name, value)


async def curl(ctx: ShellContext, argv: Sequence[str]) -> int:
    """The command."""
    if argv[1:2] in (["-h"], ["--help"], ("-h",), ("--help",)):
        ctx.out(USAGE)
        return 0
    if argv[1:2] in (["-V"], ["--version"], ("-V",), ("--version",)):
        ctx.out(f"{user_agent(ctx).replace('/', ' ')} (x86_64-pc-linux-gnu)\nProtocols: http \n")
        return 0
    try:
        options = parse_options(argv)
    except UsageError as error:
        ctx.err(str(error))
        return 2
    if not options.urls:
        ctx.err(_HELP)
        return 2
    status = 0
    for url in options.urls:
        transfer = Transfer(url, ctx.clock.monotonic())
        try:
            async with asyncio.timeout(options.max_time or None):
                await _transfer(ctx, options, transfer)
        except TimeoutError:
            status = 28
            elapsed = round((ctx.clock.monotonic() - transfer.started) * 1000)
            what = (
                f"Operation timed out after {elapsed} milliseconds with "
                f"{transfer.size} bytes received"
                if transfer.connect_s
                else f"Connection timed out after {elapsed} milliseconds"
            )
            _complain(ctx, options, 28, what)
        except CurlError as error:
            status = error.code
            _complain(ctx, options, error.code, str(error))
        except BrokenPipeError:
            return 23
        transfer.total_s = ctx.clock.monotonic() - transfer.started
        if options.write_out:
            ctx.out(render_write_out(options.write_out, transfer, status))
    return status


def _complain(ctx: ShellContext, options: Options, code: int, text: str) -> None:
    if not options.on("silent") or options.on("show_error"):
        ctx.err(f"curl: ({code}) {text}\n")


def user_agent(ctx: ShellContext) -> str:
    """``curl/7.29.0`` as the tutorial's nodes sent, ``curl/7.88.1`` today."""
    return "curl/7.29.0" if ctx.era == "2017" else "curl/7.88.1"


async def _transfer(ctx: ShellContext, options: Options, transfer: Transfer) -> None:
    url_text = transfer.url
    while True:
        head = await _one(ctx, options, transfer, url_text)
        location = head.get("Location")
        if not (options.on("location") and 300 <= head.status < 400 and location):
            return
        transfer.redirects += 1
        if transfer.redirects > MAX_REDIRECTS:
            raise CurlError(47, f"Maximum ({MAX_REDIRECTS}) redirects followed")
        base = url_text if "://" in url_text else f"http://{url_text}"
        try:
            url_text = transfer.url = urljoin(base, location)
        except ValueError:
            raise CurlError(3, "URL using bad/illegal format or missing URL") from None


async def _one(ctx: ShellContext, options: Options, transfer: Transfer, text: str) -> Head:
    try:
        url = Url.parse(text)
    except ValueError:
        raise CurlError(3, "URL using bad/illegal format or missing URL") from None
    if url.scheme not in ("http", "https"):
        raise CurlError(1, f'Protocol "{url.scheme}" not supported or disabled in libcurl')
    address = await _address(ctx, options, url)

    def say(line: str) -> None:
        if options.on("verbose"):
            ctx.err(f"{line}\n")

    exchange = Exchange(
        ctx.network,
        address,
        url.port,
        source=options.interface,
        tls=_tls(ctx, options) if url.scheme == "https" else None,
        server_name=url.host if url.scheme == "https" else "",
    )
    async with exchange:
        say(f"*   Trying {address}:{url.port}...")
        await _connect(ctx, options, exchange, transfer, url, address)
        say(f"* Connected to {url.host} ({address}) port {url.port} (#0)")
        method, body, headers = _request(ctx, options, url)
        target = url.target
        if options.on("get") and options.data:
            target += ("&" if "?" in target else "?") + "&".join(options.data)
        try:
            lines = await exchange.send(
                method, target, headers, body, version="1.0" if options.on("http10") else "1.1"
            )
            transfer.pretransfer_s = ctx.clock.monotonic() - transfer.started
            for line in [*lines, ""]:
                say(f"> {line}")
            head = await exchange.head()
            transfer.first_byte_s = ctx.clock.monotonic() - transfer.started
            _note(transfer, head)
            for line in [*head.lines, ""]:
                say(f"< {line}")
            await _receive(ctx, options, exchange, transfer, method, head)
        except EmptyReplyError:
            raise CurlError(52, "Empty reply from server") from None
        except BadReplyError:
            raise CurlError(1, "Received HTTP/0.9 when not allowed") from None
        except ShortBodyError as error:
            raise CurlError(
                18, f"transfer closed with {error.missing} bytes remaining to read"
            ) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.errno == errno.EPIPE:
                raise
            raise CurlError(56, f"Recv failure: {os_error_text(error)}") from None
        say(f"* Connection #0 to host {url.host} left intact")
    return head


async def _address(ctx: ShellContext, options: Options, url: Url) -> str:
    for entry in options.resolve:
        host, port, address = [*entry.split(":", 2), "", ""][:3]
        if host == url.host and port == str(url.port):
            return address
    try:
        return await resolve(ctx, url.host)
    except ResolveError:
        raise CurlError(6, f"Could not resolve host: {url.host}") from None


def _tls(ctx: ShellContext, options: Options) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if options.on("insecure"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif options.cacert:
        try:
            context.load_verify_locations(cadata=ctx.files.read(ctx.path(options.cacert)).decode())
        except (OSError, ValueError):
            raise CurlError(
                77, f"error setting certificate verify locations:  CAfile: {options.cacert}"
            ) from None
    else:
        context.load_default_certs()
    return context


async def _connect(
    ctx: ShellContext,
    options: Options,
    exchange: Exchange,
    transfer: Transfer,
    url: Url,
    address: str,
) -> None:
    began = ctx.clock.monotonic()

    def failed(code: int, reason: str) -> CurlError:
        took = round((ctx.clock.monotonic() - began) * 1000)
        if options.on("verbose"):
            ctx.err("* Closing connection 0\n")
        return CurlError(
            code, f"Failed to connect to {url.host} port {url.port} after {took} ms: {reason}"
        )

    try:
        async with asyncio.timeout(options.connect_timeout or None) as limit:
            await exchange.connect()
    except ssl.SSLCertVerificationError as error:
        raise CurlError(60, f"SSL certificate problem: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise CurlError(35, f"{error.reason or error}") from None
    except OSError as error:
        if isinstance(error, TimeoutError) and limit.expired():
            raise failed(28, "Timeout was reached") from None
        if options.on("verbose"):
            ctx.err(f"* connect to {address} port {url.port} failed: {os_error_text(error)}\n")
        code = 28 if error.errno == errno.ETIMEDOUT else 7
        raise failed(code, "Couldn't connect to server") from None
    transfer.connect_s = ctx.clock.monotonic() - transfer.started
    transfer.remote_ip, transfer.remote_port = address, url.port
    transfer.local = exchange.local


def _request(
    ctx: ShellContext, options: Options, url: Url
) -> tuple[str, bytes, list[tuple[str, str]]]:
    body = b""
    if options.data and not options.on("get"):
        body = "&".join(_data(ctx, each) for each in options.data).encode()
    method = options.method or ("HEAD" if options.on("head") else "POST" if body else "GET")
    own = [
        ("Host", url.authority),
        ("User-Agent", options.agent or user_agent(ctx)),
        ("Accept", "*/*"),
    ]
    if options.referer:
        own.append(("Referer", options.referer))
    given = [header.partition(":") for header in options.headers]
    replaced = {name.strip().lower() for name, _, _ in given}
    headers = [(name, value) for name, value in own if name.lower() not in replaced]
    headers += [(name.strip(), value.strip()) for name, _, value in given if value.strip()]
    if body:
        headers.append(("Content-Length", str(len(body))))
        if "content-type" not in replaced:
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
    return method, body, headers


def _data(ctx: ShellContext, text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return ctx.files.read(ctx.path(text[1:])).decode("utf-8", "replace")
    except OSError:
        raise CurlError(26, f"Failed to open {text[1:]}") from None


def _note(transfer: Transfer, head: Head) -> None:
    transfer.status = head.status
    transfer.content_type = head.get("Content-Type")
    transfer.header_size += sum(len(line) + 2 for line in head.lines) + 2


async def _receive(
    ctx: ShellContext,
    options: Options,
    exchange: Exchange,
    transfer: Transfer,
    method: str,
    head: Head,
) -> None:
    if options.on("fail") and head.status >= 400:
        raise CurlError(22, f"The requested URL returned error: {head.status}")
    redirecting = options.on("location") and 300 <= head.status < 400 and head.get("Location")
    output = options.output
    if options.on("remote_name"):
        output = transfer.url.rpartition("/")[2]
    path = ctx.path(output) if output and output != "-" else ""
    if path:
        _save(ctx, path, b"", append=False)
    if options.on("include") or options.on("head"):
        text = "\r\n".join([*head.lines, "", ""])
        await _put(ctx, path, text.encode("latin-1", "replace"))
    async for data in exchange.body(method, head):
        transfer.size += len(data)
        if not redirecting:
            await _put(ctx, path, data)


async def _put(ctx: ShellContext, path: str, data: bytes) -> None:
    if path:
        _save(ctx, path, data, append=True)
        return
    ctx.stdout.write(data)
    await ctx.stdout.drain()


def _save(ctx: ShellContext, path: str, data: bytes, *, append: bool) -> None:
    try:
        ctx.files.write(path, data, append=append)
    except OSError as error:
        if not append:
            ctx.err(f"Warning: Failed to open the file {path}: {os_error_text(error)}\n")
        raise CurlError(23, "Failure writing output to destination") from None


def render_write_out(template: str, transfer: Transfer, status: int) -> str:
    """Expand ``-w``: variables, ``\\n``, ``\\t``, ``\\r``."""
    values = {
        "http_code": f"{transfer.status:03d}",
        "response_code": f"{transfer.status:03d}",
        "url_effective": transfer.url,
        "remote_ip": transfer.remote_ip,
        "remote_port": str(transfer.remote_port),
        "local_ip": str(transfer.local[0]),
        "local_port": str(transfer.local[1]),
        "size_download": str(transfer.size),
        "size_header": str(transfer.header_size),
        "time_connect": f"{transfer.connect_s:.6f}",
        "time_namelookup": f"{0:.6f}",
        "time_pretransfer": f"{transfer.pretransfer_s:.6f}",
        "time_starttransfer": f"{transfer.first_byte_s:.6f}",
        "time_total": f"{transfer.total_s:.6f}",
        "num_redirects": str(transfer.redirects),
        "num_connects": str(int(transfer.connect_s > 0)),
        "content_type": transfer.content_type,
        "exitcode": str(status),
        "http_version": "1.1",
    }
    text = template.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
    for name, value in values.items():
        text = text.replace(f"%{{{name}}}", value)
    return text.replace("%%", "%")
