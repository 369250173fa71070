"""nginx with its default configuration: the welcome page, error pages, the access log.

Response heads, pages and log lines follow nginx 1.22 side by side with the 1.7.9 of the
official image; times of the page's file are those of the official packages where known.
"""

from __future__ import annotations

import datetime
import email.utils
import posixpath
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from aiohttp import web

from emulator.workloads.httpd import peer_of, serve_until_stopped
from emulator.workloads.registry import version_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.workloads.context import ContainerContext

DOCUMENT_ROOT: Final = "/usr/share/nginx/html"
LATEST: Final = "1.29.3"
# Last-Modified of index.html in the official packages; other versions take the nearest older one.
_PAGE_TIMES: Final[Mapping[tuple[int, ...], str]] = {
    (1, 7, 9): "Tue, 23 Dec 2014 16:25:09 GMT",
    (1, 9, 1): "Tue, 26 May 2015 15:02:09 GMT",
    (1, 14, 2): "Tue, 04 Dec 2018 14:44:49 GMT",
    (1, 16, 1): "Tue, 13 Aug 2019 10:05:00 GMT",
    (1, 19, 0): "Tue, 26 May 2020 15:00:20 GMT",
    (1, 21, 6): "Tue, 25 Jan 2022 15:03:52 GMT",
    (1, 25, 3): "Tue, 24 Oct 2023 13:46:47 GMT",
    (1, 27, 0): "Tue, 28 May 2024 13:22:30 GMT",
}
_TYPES: Final = {
    "html": "text/html",
    "htm": "text/html",
    "txt": "text/plain",
    "css": "text/css",
    "js": "application/javascript",
    "json": "application/json",
    "xml": "text/xml",
    "png": "image/png",
    "gif": "image/gif",
    "jpg": "image/jpeg",
    "svg": "image/svg+xml",
    "ico": "image/x-icon",
}
_REASONS: Final = {
    301: "Moved Permanently",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Not Allowed",
    413: "Request Entity Too Large",
    414: "Request-URI Too Large",
    500: "Internal Server Error",
}
_STYLE_OLD = """\
<style>
    body {
        width: 35em;
        margin: 0 auto;
        font-family: Tahoma, Verdana, Arial, sans-serif;
    }
</style>
"""
_STYLE_NEW = """\
<style>
html { color-scheme: light dark; }
body { width: 35em; margin: 0 auto;
font-family: Tahoma, Verdana, Arial, sans-serif; }
</style>
"""
_WELCOME = """\
<!DOCTYPE html>
<html>
<head>
<title>Welcome to nginx!</title>
{style}</head>
<body>
<h1>Welcome to nginx!</h1>
<p>If you see this page, the nginx web server is successfully installed and
working. Further configuration is required.</p>

<p>For online documentation and support please refer to
<a href="http://nginx.org/">nginx.org</a>.<br/>
Commercial support is available at
<a href="http://nginx.com/">nginx.com</a>.</p>

<p><em>Thank you for using nginx.</em></p>
</body>
</html>
"""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def full_version(tag: str) -> str:
    """The three-part version behind a tag: ``1.25`` → ``1.25.0``, ``latest`` → LATEST."""
    stated = version_of(tag)
    if not stated or stated == "1":
        return LATEST
    return stated if stated.count(".") >= 2 else stated + ".0" * (2 - stated.count("."))


def welcome_page(version: str) -> bytes:
    """index.html: 612 bytes up to 1.21.4, 615 since (it follows the dark colour scheme)."""
    style = _STYLE_NEW if _numbers(version) >= (1, 21, 5) else _STYLE_OLD
    return _WELCOME.format(style=style).encode()


def page_time(version: str) -> float:
    """Unix seconds of the welcome page's file."""
    numbers = _numbers(version)
    older = [key for key in _PAGE_TIMES if key <= numbers]
    text = _PAGE_TIMES[max(older)] if older else _PAGE_TIMES[1, 7, 9]
    return email.utils.parsedate_to_datetime(text).timestamp()


def error_body(status: int, version: str) -> bytes:
    """ngx_http_special_response.c's page; the body colour went away in 1.15.6."""
    title = f"{status} {_REASONS.get(status, '')}"
    body = "<body>" if _numbers(version) >= (1, 15, 6) else '<body bgcolor="white">'
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n{body}\r\n"
        f"<center><h1>{title}</h1></center>\r\n<hr><center>nginx/{version}</center>\r\n"
        "</body>\r\n</html>\r\n"
    ).encode()


def log_time(unix_s: float) -> str:
    """``22/Nov/2026:02:51:32 +0000``."""
    moment = datetime.datetime.fromtimestamp(unix_s, datetime.UTC)
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    return f"{moment:%d}/{months[moment.month - 1]}/{moment:%Y:%H:%M:%S} +0000"


def _byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single-range header; None for anything else (send it all)."""
    unit, equals, spec = header.partition("=")
    first, dash, last = spec.partition("-")
    if unit != "bytes" or not equals or not dash or "," in spec:
        return None
    if not all(re.fullmatch("[0-9]{0,18}", each) for each in (first, last)):
        return None
    if not first:
        return (max(0, size - int(last)), size - 1) if last and int(last) else None
    start, end = int(first), int(last) if last else size - 1
    return (start, min(end, size - 1)) if start < size and start <= end else None


def _path_of(target: str) -> str | None:
    """The path of a request's target, ``..`` resolved; None if it leads out of the root."""
    path = target.partition("?")[0]
    if not path.startswith("/"):
        # RFC 9112 section 3.2.2: the absolute form names scheme and host too.
        path = "/" + path.partition("://")[2].partition("/")[2]
    depth = 0
    for part in (path := unquote(path)).split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return None
    clean = posixpath.normpath(path)
    return clean + "/" if path.endswith("/") and clean != "/" else clean


class _Site:
    def __init__(self, ctx: ContainerContext, version: str) -> None:
        self._ctx = ctx
        self._version = version

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = _path_of(request.raw_path)
        response = self._page(request, 400) if path is None else self._answer(request, path)
        self._log(request, response)
        return response

    def _answer(self, request: web.BaseRequest, path: str) -> web.Response:
        files, target = self._ctx.files, DOCUMENT_ROOT + path
        if target.endswith("/"):
            target += "index.html"
        elif files.is_dir(target):
            location = f"http://{request.headers.get('Host', 'localhost')}{path}/"
            return self._page(request, 301, {"Location": location})
        if not files.exists(target):
            if target.endswith("/index.html") and files.is_dir(posixpath.dirname(target)):
                self._complain(
                    request,
                    f'directory index of "{posixpath.dirname(target)}/" is forbidden',
                )
                return self._page(request, 403)
            self._complain(request, f'open() "{target}" failed (2: No such file or directory)')
            return self._page(request, 404)
        if request.method not in ("GET", "HEAD"):
            return self._page(request, 405)
        return self._file(request, target)

    def _file(self, request: web.BaseRequest, target: str) -> web.Response:
        data, modified = self._ctx.files.read(target), self._ctx.files.mtime(target)
        kind = _TYPES.get(target.rpartition(".")[2], "application/octet-stream")
        etag = f'"{int(modified):x}-{len(data):x}"'
        since = request.headers.get("If-Modified-Since", "")
        last_modified = email.utils.formatdate(modified, usegmt=True)
        tail = {"Last-Modified": last_modified, "Connection": self._connection(request)}
        if request.headers.get("If-None-Match") == etag or since == last_modified:
            return web.Response(status=304, headers={**self._head(), **tail, "ETag": etag})
        span = _byte_range(request.headers.get("Range", ""), len(data))
        part = data if span is None else data[span[0] : span[1] + 1]
        headers = {**self._head(), "Content-Type": kind, "Content-Length": str(len(part))}
        headers |= tail | {"ETag": etag}
        if span is None:
            return web.Response(body=part, headers=headers | {"Accept-Ranges": "bytes"})
        headers["Content-Range"] = f"bytes {span[0]}-{span[1]}/{len(data)}"
        return web.Response(status=206, body=part, headers=headers)

    def page(self, request: web.BaseRequest, status: int) -> web.StreamResponse:
        """The page for a request that did not parse; it is logged like any other."""
        response = self._page(request, status, close=True)
        self._log(request, response)
        return response

    def _page(
        self,
        request: web.BaseRequest,
        status: int,
        extra: Mapping[str, str] | None = None,
        *,
        close: bool = False,
    ) -> web.Response:
        body = error_body(status, self._version)
        headers = {
            **self._head(),
            "Content-Type": "text/html",
            "Content-Length": str(len(body)),
            **(extra or {}),
            "Connection": "close" if close else self._connection(request),
        }
        reason = _REASONS.get(status)
        return web.Response(status=status, reason=reason, body=body, headers=headers)

    def _head(self) -> dict[str, str]:
        date = email.utils.formatdate(self._ctx.clock.time(), usegmt=True)
        return {"Server": f"nginx/{self._version}", "Date": date}

    def _connection(self, request: web.BaseRequest) -> str:
        return "keep-alive" if request.keep_alive else "close"

    def _log(self, request: web.BaseRequest, response: web.Response) -> None:
        body = response.body
        sent = len(body) if isinstance(body, bytes) and request.method != "HEAD" else 0
        headers = request.headers
        self._ctx.print(
            f"{peer_of(request)[0]} - - [{log_time(self._ctx.clock.time())}] "
            f'"{_request_line(request)}" {response.status} {sent} '
            f'"{headers.get("Referer", "-")}" "{headers.get("User-Agent", "-")}" '
            f'"{headers.get("X-Forwarded-For", "-")}"'
        )

    def _complain(self, request: web.BaseRequest, what: str) -> None:
        moment = datetime.datetime.fromtimestamp(self._ctx.clock.time(), datetime.UTC)
        self._ctx.complain(
            f"{moment:%Y/%m/%d %H:%M:%S} [error] 7#7: *1 {what}, client: {peer_of(request)[0]}, "
            f'server: localhost, request: "{_request_line(request)}", '
            f'host: "{request.headers.get("Host", "")}"'
        )


def _request_line(request: web.BaseRequest) -> str:
    version = request.version
    return f"{request.method} {request.raw_path} HTTP/{version.major}.{version.minor}"


async def nginx(ctx: ContainerContext) -> int:
    """PID 1 of the image: serves port 80 until SIGTERM, which it obeys at once."""
    version = ctx.env.get("NGINX_VERSION") or LATEST
    site = _Site(ctx, version)
    if ctx.argv[1:2] in (("-v",), ("-V",)):
        ctx.complain(f"nginx version: nginx/{version}")
        return 0
    try:
        await serve_until_stopped(ctx, site.handle, 80, error_page=site.page)
    except OSError as error:
        moment = datetime.datetime.fromtimestamp(ctx.clock.time(), datetime.UTC)
        stamp = f"{moment:%Y/%m/%d %H:%M:%S} [emerg] 1#1:"
        ctx.complain(
            f"{stamp} bind() to 0.0.0.0:80 failed ({error.errno}: {error.strerror})\n"
            f"nginx: [emerg] bind() to 0.0.0.0:80 failed ({error.errno}: {error.strerror})"
        )
        return 1
    return 0
