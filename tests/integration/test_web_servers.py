"""Whole builds against web servers that misbehave or say no, and killed builds: all explained, nothing asked twice."""

import asyncio
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.manifest import file_sha256
from tests.factories.memory import watch
from tests.factories.web_server import WebServer, answer

MAPPING = """\
key: sku
pictures: [photo]
prompt: "<|image_1|>\\nWhat is this?"
answer: "{name}"
fields: {name: {column: name, type: text}}
split: {fractions: {train: 0.8, test: 0.2}}
"""
QUICK = "--timeout 4 --deadline 10 --attempts 3 --backoff 0.05 --max-picture-mb 1 --per-host-rate 0 --connections 64"
MEMORY_BYTES = 400 << 20
BOMB = gzip.compress(bytes(50 << 20), compresslevel=1)


def picture(name: str) -> bytes:
    """A JPEG of its own for every name."""
    shade = hash_of(name)
    out = io.BytesIO()
    Image.frombytes("RGB", (24, 24), bytes((shade * (place + 1)) % 251 for place in range(24 * 24 * 3))).save(
        out, "JPEG"
    )
    return out.getvalue()


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big") % 65_521 + 1


async def misbehave(server: WebServer, writer: asyncio.StreamWriter, path: str) -> None:
    """One of each way in which servers fail, by the path's last name."""
    name, seen = path.rpartition("/")[2], server.times[path]
    whole = picture(path)
    chunk = b"%x\r\n" % (1 << 16) + whole.ljust(1 << 16, b"x") + b"\r\n"
    raw: dict[str, bytes] = {
        "404": answer(404),
        "410": answer(410),
        "403": answer(403),
        "500": answer(500),
        "429-for-long": answer(429, Retry_After="3600"),
        "429-once": answer(429, Retry_After="1") if seen < 2 else answer(200, whole),
        "503-twice": answer(503) if seen < 3 else answer(200, whole),
        "circle": answer(302, Location=f"/{path}"),
        "to-metadata": answer(302, Location="http://169.254.169.254/latest/meta-data"),
        "to-file": answer(302, Location="file:///etc/passwd"),
        "html": answer(200, b"<html><body>Our shop has moved</body></html>"),
        "svg": answer(200, b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg/>'),
        "nothing": answer(200),
        "bomb": answer(200, BOMB, Content_Encoding="gzip"),
        "noai": answer(200, whole, X_Robots_Tag="noai, noimageai"),
        "too-little": answer(200, whole, Content_Length=str(len(whole) * 2)),
        "too-much": answer(200, whole, Content_Length=str(len(whole) // 2)),
        "announced": answer(200, whole, Content_Length=str(1 << 40)),
        "garbage": b"220 mail.example.com ESMTP\r\n",
        "header": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000,
    }
    writer.write(raw.get(name, b""))
    if name in ("too-little", "garbage", "header", "hangs-up"):
        raise ConnectionResetError
    if name in ("silent", "too-much"):
        await asyncio.sleep(60 if name == "silent" else 0)
    elif name == "a-byte-a-second":
        writer.write(answer(200, Content_Length="5000"))
        for byte in whole:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)
    elif name == "endless":
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(chunk)
            await writer.drain()
    elif name not in raw and name != "hangs-up":
        writer.write(answer(200, whole))


EXPECTED = {
    "404": "not-found",
    "410": "not-found",
    "403": "forbidden",
    "500": "server-error",
    "429-for-long": "too-many-requests",
    "circle": "redirects",
    "to-metadata": "refused-address",
    "to-file": "bad-url",
    "html": "not-a-picture",
    "svg": "not-a-picture",
    "nothing": "empty",
    "bomb": "packed",
    "noai": "noai",
    "too-little": "connection",
    "too-much": "truncated",
    "announced": "too-large",
    "garbage": "connection",
    "header": "connection",
    "hangs-up": "connection",
    "silent": "timeout",
    "a-byte-a-second": "timeout",
    "endless": "too-large",
    "private/a": "robots",
}
GOOD = ["429-once", "503-twice", *(f"good-{number}" for number in range(20))]


def catalogue(folder: Path, urls: list[str]) -> list[str]:
    """Write a catalogue of these pictures; returns the command that builds it."""
    folder.mkdir(exist_ok=True)
    (folder / "mapping.yaml").write_text(MAPPING)
    with (folder / "rows.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(("sku", "photo", "name"))
        writer.writerows((f"sku-{number}", url, f"thing {number}") for number, url in enumerate(urls))
    command = [sys.executable, "-m", "data.build", "--preset", str(folder / "mapping.yaml")]
    return [*command, "--source", str(folder / "rows.csv"), "--workers", "2"]


@pytest.mark.parametrize("copies", [1, pytest.param(8, marks=pytest.mark.soak)])
def test_every_way_a_server_fails_is_a_row_with_its_reason_and_the_rest_goes_on(
    tmp_path: Path, root: Path, copies: int
) -> None:
    expected: dict[str, str | None] = {}
    with (
        WebServer(misbehave, robots="User-agent: *\nDisallow: /*/private/\n") as server,
        WebServer(misbehave) as not_allowed,
        WebServer(misbehave, robots="") as other,
    ):
        other_url = other.url("x").removesuffix("x")

        async def broken(server: WebServer, writer: asyncio.StreamWriter, path: str) -> None:
            writer.write(answer(302, Location=not_allowed.url("secret", "localhost")))

        with WebServer(broken) as redirecting:
            for copy in range(copies):
                expected |= {server.url(f"{copy}/{name}"): reason for name, reason in EXPECTED.items()}
                expected |= {server.url(f"{copy}/{name}"): None for name in GOOD}
                expected |= {f"{other_url}{copy}/good": None}
                expected |= {redirecting.url(f"{copy}"): "refused-address"}
                expected |= {f"http://nohost.invalid/{copy}.jpg": "dns", f"http://[broken/{copy}": "bad-url"}
            command = [*catalogue(tmp_path, list(expected)), "--output", str(tmp_path / "out"), *QUICK.split()]
            command += ["--allow-host", "127.0.0.1", "--max-failed-downloads", "1", "--no-probe"]
            done = watch(command, root)
    assert done.code == 0, done.said
    reasons = {
        entry["row"]: entry["reason"]
        for entry in map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    }
    urls = list(expected)
    found = {urls[row]: reason for row, reason in reasons.items()}
    # Bytes behind the announced end spoil the connection, or are left behind with it.
    spoiled = {url for url, reason in found.items() if url.endswith("/too-much") and reason == "connection"}
    expected |= dict.fromkeys(spoiled, "connection")
    assert found == {url: reason for url, reason in expected.items() if reason}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    kept = sum(split["samples"] for split in manifest["counts"].values())
    assert kept + len(reasons) == len(urls)
    assert not_allowed.connections == 0
    assert server.robots_asked == 1
    assert server.times["0/404"] == server.times["0/403"] == server.times["0/429-for-long"] == 1
    assert server.times["0/500"] == 3
    assert server.times["0/private/a"] == 0
    assert done.peak < MEMORY_BYTES
    (part,) = (tmp_path / "out" / "downloads" / "ledger").glob("part-*.parquet")
    pictures = {one["url"]: one for row in pq.read_table(part).to_pylist() for one in row["pictures"]}
    for url, reason in expected.items():
        assert pictures[url]["verdict"] == (reason or "ok"), url
        assert pictures[url]["detail"] if reason else len(pictures[url]["sha256"]) == 64
    noai, private, good = (pictures[server.url(f"0/{name}")] for name in ("noai", "private/a", "503-twice"))
    assert (noai["robots"], private["robots"], good["robots"]) == ("noai", "disallowed", "allowed")
    assert (good["host"], good["attempts"], private["attempts"]) == ("127.0.0.1", 3, 0)


def tars(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): file_sha256(path) for path in [*out.glob("*/*.tar"), out / "manifest.json"]}


def until(condition: Callable[[], bool], running: "subprocess.Popen[str]") -> None:
    while not condition() and running.poll() is None:
        time.sleep(0.005)


@pytest.mark.soak
@pytest.mark.parametrize("kills", [1, 20])
def test_a_killed_fetch_goes_on_without_asking_again_for_what_was_whole(tmp_path: Path, root: Path, kills: int) -> None:
    pictures, connections = 100 * kills, 4

    async def slowly(server: WebServer, writer: asyncio.StreamWriter, path: str) -> None:
        await asyncio.sleep(0.01)
        writer.write(answer(200, picture(path)))

    with WebServer(slowly) as server:
        command = catalogue(tmp_path, [server.url(f"{number}.jpg") for number in range(pictures)])
        command += ["--allow-host", "127.0.0.1", "--per-host-rate", "0", "--connections", str(connections)]
        out = tmp_path / "killed"
        for kill in range(1, kills + 1):
            goal = kill * pictures // (kills + 1)
            with subprocess.Popen(
                [*command, "--output", str(out)], cwd=root, stderr=subprocess.DEVNULL, text=True, start_new_session=True
            ) as running:
                until(lambda goal=goal: len(set(server.asked)) >= goal, running)
                os.killpg(running.pid, signal.SIGKILL)
        subprocess.run([*command, "--output", str(out)], cwd=root, check=True, capture_output=True)
        twice = sum(times - 1 for times in server.times.values())
        subprocess.run([*command, "--output", str(tmp_path / "whole")], cwd=root, check=True, capture_output=True)
    assert twice <= kills * connections
    assert tars(out) == tars(tmp_path / "whole")
