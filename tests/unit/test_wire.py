"""GET below aiohttp's session: what is sent, which connections are kept, and what a server may not do to us."""

import asyncio
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import aiohttp
import pytest
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from data.wire import Wire

Answer = Callable[[int], list[bytes | None]]
"""Number of the request on all connections → what is written; None closes the connection."""
WELL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Served:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.heads: list[str] = []
        self.connections = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head.decode())
                for piece in self._answer(len(self.heads) - 1):
                    if piece is None:
                        return
                    writer.write(piece)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def served(
    answer: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Served, int]]:
    made = Served(answer)
    server = await asyncio.start_server(made.connected, host, 0, ssl=tls)
    try:
        yield made, server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def body(wire: Wire, url: str) -> tuple[int, bytes]:
    with await wire.get(URL(url)) as response:
        return response.status, await response.content.read()


def with_wire(work: Callable[[Wire], Awaitable[None]]) -> None:
    async def run() -> None:
        wire = Wire(ThreadedResolver(), {"User-Agent": "tester", "Accept": "image/*"})
        try:
            await work(wire)
        finally:
            await wire.close()

    asyncio.run(run())


def test_a_request_is_what_a_server_expects_and_its_connection_is_kept() -> None:
    async def work(wire: Wire) -> None:
        async with served(lambda number: [WELL]) as (server, port):
            for path in ("/a b.jpg?c=%2F&d=ü#e", "/b.jpg"):
                assert await body(wire, f"http://127.0.0.1:{port}{path}") == (200, b"hi")
            assert server.connections == 1
            first = f"GET /a%20b.jpg?c=/&d=%C3%BC HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            assert server.heads[0] == first + "User-Agent: tester\r\nAccept: image/*\r\n\r\n"

    with_wire(work)


def test_answers_of_all_kinds_follow_each_other_on_one_connection() -> None:
    answers: list[tuple[bytes, tuple[int, bytes]]] = [
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n", (200, b"hi")),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", (404, b"gone")),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", (304, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nzip", (200, b"zip")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", (200, b"")),
        (WELL, (200, b"hi")),
    ]

    async def work(wire: Wire) -> None:
        async with served(lambda number: [answers[number][0]]) as (server, port):
            for _, wanted in answers:
                assert await body(wire, f"http://127.0.0.1:{port}/a") == wanted
            assert server.connections == 1

    with_wire(work)


def test_an_answer_nobody_asked_for_is_not_taken_for_the_next_one() -> None:
    unasked = WELL + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"

    async def work(wire: Wire) -> None:
        async with served(lambda number: [WELL if number else unasked]) as (server, port):
            for _ in range(2):
                assert await body(wire, f"http://127.0.0.1:{port}/a") == (200, b"hi")
            assert server.connections == 2

    with_wire(work)


def test_an_address_of_version_6_stands_in_brackets() -> None:
    async def work(wire: Wire) -> None:
        async with served(lambda number: [WELL], host="::1") as (server, port):
            assert await body(wire, f"http://[::1]:{port}/a") == (200, b"hi")
            assert f"Host: [::1]:{port}\r\n" in server.heads[0]

    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with_wire(work)


def test_a_kept_connection_that_the_server_closed_costs_no_failure() -> None:
    async def work(wire: Wire) -> None:
        async with served(lambda number: [None] if number == 1 else [WELL]) as (server, port):
            assert await body(wire, f"http://127.0.0.1:{port}/a") == (200, b"hi")
            assert await body(wire, f"http://127.0.0.1:{port}/b") == (200, b"hi")
            assert (len(server.heads), server.connections) == (3, 2)

    with_wire(work)


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", None],
        [None],
        [b"no HTTP at all\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi"],
        [b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(1000)) + b"\r\n"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n"],
    ],
)
def test_what_is_no_answer_is_an_error_and_its_connection_is_not_used_again(answer: list[bytes | None]) -> None:
    async def work(wire: Wire) -> None:
        async with served(lambda number: answer if number < 2 else [WELL]) as (server, port):
            with pytest.raises((aiohttp.ClientError, ValueError)):
                await body(wire, f"http://127.0.0.1:{port}/a")
            before = server.connections
            server.heads += ["", ""]
            assert await body(wire, f"http://127.0.0.1:{port}/b") == (200, b"hi")
            assert server.connections == before + 1

    with_wire(work)


def test_remarks_before_an_answer_are_passed_over_and_a_body_left_unread_closes_the_connection() -> None:
    async def work(wire: Wire) -> None:
        late = b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"
        async with served(lambda number: [late, WELL]) as (server, port):
            assert await body(wire, f"http://127.0.0.1:{port}/a") == (200, b"hi")
        head = b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000000\r\n\r\n"
        async with served(lambda number: [head, b"x"]) as (server, port):
            for _ in range(2):
                with await wire.get(URL(f"http://127.0.0.1:{port}/a")) as response:
                    assert (response.status, response.announced) == (404, 1_000_000)
            assert server.connections == 2

    with_wire(work)


def test_nobody_at_the_port_is_an_error_at_once() -> None:
    async def work(wire: Wire) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            with pytest.raises(aiohttp.ClientConnectorError):
                await wire.get(URL(f"http://127.0.0.1:{free.getsockname()[1]}/a"))

    with_wire(work)


def certificate(folder: Path) -> ssl.SSLContext:
    """Of a server whose certificate nobody but itself vouches for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_a_certificate_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path)

    async def work(wire: Wire) -> None:
        async with served(lambda number: [WELL], tls=tls) as (server, port):
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await wire.get(URL(f"https://127.0.0.1:{port}/a"))
            assert not server.heads
            from aiohttp import connector

            monkeypatch.setattr(
                connector, "_SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
            )
            assert await body(wire, f"https://127.0.0.1:{port}/a") == (200, b"hi")

    with_wire(work)
