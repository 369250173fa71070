"""Scripts, words and answers nobody means well with: each ends, and only itself."""

from __future__ import annotations

import asyncio
import io
import tarfile

import pytest

from emulator.addr import parse_ip
from emulator.errors import UsageError
from emulator.netstack.sock.tcp import MIN_MSS, Endpoint
from emulator.shell.context import MAX_EXPANSION_BYTES
from emulator.shell.curl import parse_options as curl_options
from emulator.shell.http import BadReplyError, Exchange, Head
from emulator.shell.parse import parse
from emulator.shell.ping import parse_options as ping_options
from emulator.shell.registry import run_command
from emulator.workloads.nginx import _byte_range, _path_of
from tests.joined_kernels import Segment
from tests.unit.test_shell_archive import memory, place
from tests.unit.test_shell_scripts import run


@pytest.mark.parametrize(
    ("script", "status", "out"),
    [
        ("echo x \\", 0, "x \\\n"),
        ("echo a\\\nb", 0, "ab\n"),
        ("for i in 1 2; do break | cat; echo $i; done", 0, "1\n2\n"),
        ("for i in 1 2; do (break); echo $i; done", 0, "1\n2\n"),
        ("echo $((1/0)) | cat; echo on", 0, "on\n"),
        ("echo $(echo $((1/0)))end", 0, "end\n"),
        ("echo $((1/0)); echo never", 2, ""),
        ("exit ²", 2, ""),
        ("echo ${²}.", 0, ".\n"),
        ("tail -n ² </run/flannel/subnet.env | wc -l", 0, "2\n"),
        ("printf '%999999999d' 1", 0, "%999999999d"),
        ("timeout nan echo x", 125, ""),
        ("timeout -1 echo x", 125, ""),
        ("env GREETING=hello sh -c 'echo $GREETING $NAME'", 0, "hello world\n"),
    ],
)
async def test_a_script_does_what_a_shell_does(script: str, status: int, out: str) -> None:
    async with asyncio.timeout(30):
        assert (await run(script))[:2] == (status, out)


def test_a_backslash_at_the_end_is_itself() -> None:
    assert len(parse("echo \\").items) == 1


async def test_a_substitution_without_end_ends_and_lets_others_run() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    async with asyncio.timeout(60):
        status, out, _ = await run(
            "x=$(seq 100000000000000000 999999999999999999); echo ${x:+full}"
        )
    task.cancel()
    assert (status, out) == (0, "full\n")
    assert turns > 100


async def test_a_variable_that_doubles_without_end_ends_the_script() -> None:
    status, _, err = await run("x=aaaaaaaaaaaaaaaa; while true; do x=$x$x$x$x; done")
    assert status == 2
    assert err == f"sh: a word of more than {MAX_EXPANSION_BYTES} bytes\n"


@pytest.mark.parametrize("word", ["nan", "inf", "-1", "²"])
def test_times_are_finite_numbers(word: str) -> None:
    for option in ("-c", "-i", "-w", "-W", "-s", "-t"):
        with pytest.raises(UsageError, match="invalid argument"):
            ping_options(["ping", option, word, "10.0.0.1"])
    with pytest.raises(UsageError, match="proper numerical"):
        curl_options(["curl", "-m", word, "http://10.0.0.1"])


async def _chunks(size: str) -> bytes:
    exchange = Exchange(None, "", 80)  # type: ignore[arg-type]  # nothing is dialled
    exchange._reader = asyncio.StreamReader()
    exchange._reader.feed_data(f"{size}\r\nabc\r\n0\r\n\r\n".encode())
    exchange._reader.feed_eof()
    head = Head(200, "OK", "1.1", (("Transfer-Encoding", "chunked"),), ())
    return b"".join([part async for part in exchange.body("GET", head)])


async def test_a_chunk_has_a_size_of_plain_hexadecimal_digits() -> None:
    assert await _chunks("3") == b"abc"
    for size in ("-3", "+3", "0x3", "3_0", ""):
        with pytest.raises(BadReplyError):
            await _chunks(size)


async def test_tar_takes_no_compressed_archive_and_no_member_larger_than_a_pod() -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as members:
        members.addfile(tarfile.TarInfo("x"))
    files = memory()
    assert await run_command(place(files, packed.getvalue()), ["tar", "xf", "-"]) == 2
    sparse = io.BytesIO()
    with tarfile.open(fileobj=sparse, mode="w", format=tarfile.PAX_FORMAT) as members:
        huge = tarfile.TarInfo("dst/huge")
        huge.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": "0,0",
            "GNU.sparse.size": str(1 << 40),
            "GNU.sparse.name": "dst/huge",
        }
        members.addfile(huge)
    ctx = place(files, sparse.getvalue())
    assert await run_command(ctx, ["tar", "xf", "-", "-C", "/"]) == 2
    assert not files.exists("/dst/huge")
    assert "No space left on device" in ctx.stderr.text  # type: ignore[attr-defined]


def test_nginx_serves_nothing_above_its_root() -> None:
    for target in (
        "/../etc/passwd",
        "/a/../../etc/passwd",
        "/%2e%2e/etc/passwd",
        "http://h/../../../../../etc/passwd",
    ):
        assert _path_of(target) is None
    assert _path_of("http://h/a/../b/?q=/../..") == "/b/"
    assert _path_of("http://h") == _path_of("/") == _path_of("/./") == "/"
    assert _path_of("/a/./b") == "/a/b"


def test_nginx_ignores_ranges_that_are_no_numbers() -> None:
    assert _byte_range("bytes=²-", 10) is None
    assert _byte_range("bytes=" + "1" * 5000 + "-", 10) is None
    assert _byte_range("bytes=2-", 10) == (2, 9)
    assert _byte_range("bytes=-3", 10) == (7, 9)


def test_a_device_with_a_tiny_mtu_cuts_packets_as_small_as_the_standard_allows() -> None:
    net = Segment()
    root = net.kernels[0].root
    root.link_add("d0", "dummy")
    root.link_set("d0", mtu=20, up=True)
    root.addr_add("d0", parse_ip("10.50.0.1"), 24)
    root.sockets.ping_open().send(parse_ip("10.50.0.2"), 1, bytes(100), dont_fragment=False)
    assert root.link("d0").tx_packets == 3
    connection = root.sockets.tcp_connect(Endpoint(parse_ip("10.50.0.2"), 80))
    net.settle()
    assert connection.mss == MIN_MSS


async def test_ss_and_netstat_call_states_by_their_own_names() -> None:
    ctx = place(memory())
    sockets = ctx.ns.sockets
    listener = sockets.tcp_listen(0, 80, 7)
    client = sockets.tcp_connect(Endpoint(0x7F000001, 80))
    while listener.accept() is None:
        ctx.kernel.handle_timer()
    client.close(now=0.0)
    ctx.kernel.handle_timer()
    assert await run_command(ctx, ["ss", "-tan"]) == 0
    assert await run_command(ctx, ["netstat", "-tan"]) == 0
    shown = ctx.stdout.text  # type: ignore[attr-defined]
    assert "FIN-WAIT-2" in shown
    assert "FIN_WAIT2" in shown
    assert "tcp        0      0 0.0.0.0:80" in shown


@pytest.mark.parametrize(
    ("command", "status", "complaint"),
    [
        (
            "ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:01 dev lo nud bogus",
            255,
            'Error: argument "bogus" is wrong: nud state is bad',
        ),
        (
            "ip addr add 10.0.0.1/99 brd + dev lo",
            1,
            'Error: any valid prefix is expected rather than "10.0.0.1/99".',
        ),
        (
            "ip link add v type vxlan id 7 dstport 70000",
            2,
            'Error: argument "70000" is wrong: invalid dst port',
        ),
        (
            "ip link add v type vxlan id 7 srcport 1 65536",
            2,
            'Error: argument "65536" is wrong: invalid source port',
        ),
        ("ip link add v type vxlan id 7 ttl 256", 2, "invalid TTL"),
        ("ping -c 1 -I 192.0.2.1 127.0.0.1", 2, "ping: bind: Cannot assign requested address"),
        ("traceroute -p 65536 127.0.0.1", 2, "Cannot handle `-p' option with arg `65536'"),
        ("traceroute -f 256 127.0.0.1", 2, "first hop out of range"),
    ],
)
async def test_numbers_that_fit_no_field_are_refused(
    command: str, status: int, complaint: str
) -> None:
    ctx = place(memory())
    ctx.kernel.root.link_set("lo", up=True)
    async with asyncio.timeout(30):
        assert await run_command(ctx, command.split()) == status
    assert complaint in ctx.stderr.text  # type: ignore[attr-defined]
