"""Fetching: local files, bytes and URLs; what fails and under which reason; starting again."""

import asyncio
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.addresses import CheckedResolver
from data.asking import Asking, DownloadLimits
from data.entries import Entry, Source
from data.failures import DownloadError
from data.fetch import FetchCounts, FetchSettings, fetch
from data.ledger import PART_ROWS, Ledger, LedgerError, Record
from data.locate import Inside, Local, Nowhere, Remote, locate
from data.originals import forget
from data.probe import ProbeFailed
from data.schema import Rejected, Row

LIMITS = DownloadLimits(timeout_s=0.5, attempts=3, backoff_s=0.01, max_bytes=100_000, per_host_rate=0)


def jpeg(seed: int = 0, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (seed * 40 % 256, 90, 10)).save(out, "JPEG", **options)
    return out.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


def run(folder: Path, values: list[Any], **changes: Any) -> tuple[list[Record], FetchCounts]:
    """Fetch a catalogue of one column `p`, asking as `changes` say; a Rejected stands for itself."""
    entries: list[Entry] = [
        value if isinstance(value, Rejected) else Row(number=number, values={"p": value, "n": number})
        for number, value in enumerate(values)
    ]
    settings = FetchSettings(pictures=("p",), image_root=str(folder), asking=Asking(**({"limits": LIMITS} | changes)))
    source = Source(name="rows.csv", columns=("p", "n"), picture_root=folder, entries=lambda: iter(entries))
    ledger = Ledger(folder / "out" / "downloads")
    with ThreadPoolExecutor(1) as pool:
        counts = fetch(iter(entries), ledger, settings, pool, 1, source, lambda more, **_: None)
    summary = ledger.summary()
    assert summary is not None
    assert (summary.rows, summary.parts) == (len(values), counts.parts)
    return [record for part in range(counts.parts) for record in ledger.read(part)], counts


class Server(ThreadingHTTPServer):
    """Pictures, and the ways in which servers fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.robots = ""
        self.agents: set[str] = set()
        self.quit = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked.append(name)
        self.server.agents.add(self.headers["User-Agent"])
        if name == "robots.txt":
            return self.answer(200, {}, self.server.robots.encode())
        if name[:3].isdigit():
            return self.answer(int(name[:3]))
        if name.startswith("flaky") and self.server.asked.count(name) < 3:
            return self.answer(503)
        if name == "busy" and self.server.asked.count(name) < 2:
            return self.answer(429, {"Retry-After": "0"})
        if name == "circle":
            return self.answer(302, {"Location": "/circle"})
        if name == "moved":
            return self.answer(301, {"Location": "/picture"})
        if name == "metadata":
            return self.answer(302, {"Location": "http://169.254.169.254/latest/meta-data"})
        if name == "file":
            return self.answer(302, {"Location": "file:///etc/passwd"})
        if name == "silent":
            self.server.quit.wait(5)
            return None
        if name == "drip":
            self.send_response(200)
            self.end_headers()
            while not self.server.quit.wait(0.1):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return None
        if name == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(jpeg() * 10)
            except OSError:
                return None
        if name == "short":
            return self.answer(200, {"Content-Length": "5000"}, jpeg())
        if name == "html":
            return self.answer(200, {"Content-Type": "image/jpeg"}, b"<html>gone</html>")
        return self.answer(200, {}, jpeg(len(name)))

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.quit.set()
        made.shutdown()


HERE = {"allowed_hosts": frozenset({"127.0.0.1"})}


def test_local_pictures_are_read_in_place_and_turned_ones_are_kept_upright(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "b.jpg").write_bytes(turned())
    (plain, upright, inside), _ = run(tmp_path, ["a.jpg", "b.jpg", {"bytes": jpeg(1), "path": "c.jpg"}])
    (picture,) = plain.pictures
    assert (picture.place, picture.width, picture.height) == (str(tmp_path / "a.jpg"), 40, 30)
    downloads = tmp_path / "out" / "downloads"
    for record, size in ((upright, (30, 40)), (inside, (40, 30))):
        (picture,) = record.pictures
        assert (picture.width, picture.height) == size
        assert Image.open(downloads / picture.place).size == size
        assert picture.place == f"pictures/{picture.sha256[:2]}/{picture.sha256}.jpg"
    assert inside.values == {"p": "c.jpg", "n": 2}
    assert (downloads / inside.pictures[0].place).read_bytes() == jpeg(1)
    assert not any((downloads / "incoming").iterdir())


def test_what_is_wrong_with_local_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "html.jpg").write_text("<html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:400])
    (tmp_path / "long.jpg").write_bytes(b"x" * 200_000)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    unread = Rejected(number=13, key=None, stage="read", reason="bad-row", detail="d")
    names = ["html.jpg", "empty.jpg", "cut.jpg", "long.jpg", "folder.jpg", "pipe.jpg", "none.jpg", "x" * 4000, "a\0b"]
    records, _ = run(tmp_path, [*names, "", "None", None, "../../etc/passwd", unread])
    assert [(record.status, record.reason) for record in records] == [
        ("rejected", reason)
        for reason in (
            "not-a-picture", "empty", "truncated", "too-large", "not-a-file", "not-a-file", "missing-file",
            "unreadable-file", "unreadable-file", "no-picture", "no-picture", "no-picture", "outside-root", "bad-row",
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("a/b.jpg", Local("a/b.jpg", "/root/a/b.jpg")),
        ("/root/a.jpg", Local("/root/a.jpg", "/root/a.jpg")),
        (" https://x/y.jpg ", Remote("https://x/y.jpg")),
        (b"abc", Inside("", b"abc")),
        ({"bytes": None, "path": "a.jpg"}, Local("a.jpg", "/root/a.jpg")),
    ],
)
def test_what_a_value_means(value: object, where: object) -> None:
    assert locate(value, "/root") == where


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("/etc/passwd", "outside-root"),
        ({"bytes": None, "path": "/etc/passwd"}, "outside-root"),
        ("/rooted/a", "outside-root"),
        ("file:///a", "bad-url"),
        (5, "bad-value"),
    ],
)
def test_what_a_value_must_not_mean(value: object, reason: str) -> None:
    found = locate(value, "/root")
    assert isinstance(found, Nowhere)
    assert found.reason == reason


def test_urls_are_fetched_and_retried_where_that_may_help(tmp_path: Path, server: Server) -> None:
    names = ["picture", "moved", "flaky", "busy", "picture"]
    records, _ = run(tmp_path, [server.url(name) for name in names], **HERE)
    assert [record.status for record in records] == ["ok"] * 5
    assert [record.pictures[0].attempts for record in records] == [1, 1, 3, 2, 1]
    for record in records:
        assert (tmp_path / "out" / "downloads" / record.pictures[0].place).is_file()
    assert server.agents == {
        "phi3-vision-tuner/0.1 (shard builder; fetches product pictures of the catalogue it was given)"
    }


@pytest.mark.parametrize(
    ("name", "reason", "times"),
    [
        ("404", "not-found", 1),
        ("410", "not-found", 1),
        ("403", "forbidden", 1),
        ("500", "server-error", 3),
        ("429", "too-many-requests", 3),
        ("418", "http-error", 1),
        ("circle", "redirects", 6),
        ("metadata", "refused-address", 1),
        ("file", "bad-url", 1),
        ("silent", "timeout", 3),
        ("drip", "timeout", 3),
        ("endless", "too-large", 1),
        ("short", "connection", 3),
        ("html", "not-a-picture", 1),
    ],
)
def test_each_way_a_server_fails_has_its_reason(
    tmp_path: Path, server: Server, name: str, reason: str, times: int
) -> None:
    (bad, good), _ = run(tmp_path, [server.url(name), server.url("picture")], **HERE)
    assert (bad.status, bad.reason) == ("rejected", reason)
    assert server.url(name) in bad.detail
    assert good.status == "ok"
    assert server.asked.count(name) == times
    assert not any((tmp_path / "out" / "downloads" / "incoming").iterdir())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "127.1"])
def test_no_connection_is_made_to_an_address_that_is_not_public(tmp_path: Path, server: Server, host: str) -> None:
    (record,), _ = run(tmp_path, [f"http://{host}:{server.server_port}/picture"])
    assert record.reason in ("refused-address", "dns")
    assert server.asked == []


@pytest.mark.parametrize(
    "host",
    ["10.0.0.1", "192.168.1.1", "169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1"],
)
def test_private_addresses_in_any_clothes_are_refused(host: str) -> None:
    async def ask() -> None:
        with pytest.raises(DownloadError, match="refused-address"):
            await CheckedResolver(frozenset(), 1.0).check(host, 80)

    asyncio.run(ask())


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://user:pass@example.com/a", "https://:80/", "http://a:99999/"]
)
def test_urls_that_are_none_are_refused(tmp_path: Path, url: str) -> None:
    (record,), _ = run(tmp_path, [url])
    assert record.reason in ("bad-url", "connection")


def test_a_finished_ledger_is_taken_over(tmp_path: Path, server: Server) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    values = ["a.jpg", server.url("picture"), server.url("404")]
    first, counts = run(tmp_path, values, **HERE)
    assert (counts.checked, counts.parts_written) == (3, 1)
    asked = len(server.asked)
    again, counts = run(tmp_path, values, **HERE)
    assert again == first
    assert (counts.checked, counts.parts_written, len(server.asked)) == (0, 0, asked)


def test_only_what_changed_is_looked_at_again(tmp_path: Path, server: Server) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg())
    values = ["a.jpg", "b.jpg", "late.jpg", server.url("picture"), server.url("gone")]
    first, _ = run(tmp_path, values, **HERE)
    (tmp_path / "b.jpg").write_bytes(jpeg(3))
    (tmp_path / "late.jpg").write_bytes(jpeg(4))
    forget(tmp_path / "out" / "downloads", first[4].pictures[0])
    second, counts = run(tmp_path, values, **HERE)
    assert counts.checked == 3
    # The picture that was fetched again lies in another place now.
    assert [record == other for record, other in zip(first, second, strict=True)] == [True, False, False, True, False]
    assert second[4].pictures[0].sha256 == first[4].pictures[0].sha256
    assert [record.status for record in second] == ["ok"] * 5


def test_an_allowed_host_is_tried_after_all(tmp_path: Path, server: Server) -> None:
    values = [server.url("picture")]
    assert run(tmp_path, values)[0][0].reason == "refused-address"
    assert run(tmp_path, values, **HERE)[0][0].status == "ok"


def test_appended_rows_leave_finished_parts_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    values = ["a.jpg"] * (PART_ROWS + 10)
    run(tmp_path, values)
    _, counts = run(tmp_path, [*values, "a.jpg"])
    assert (counts.parts, counts.parts_written) == (2, 1)
    _, counts = run(tmp_path, values[:5])
    assert counts.parts == 1
    with pytest.raises(LedgerError, match="--only fetch"):
        Ledger(tmp_path / "out" / "downloads").read(1)


def test_a_source_that_breaks_off_ends_the_fetch_and_keeps_what_is_done(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())

    def entries() -> Iterator[Entry]:
        for number in range(PART_ROWS + 1):
            yield Row(number=number, values={"p": "a.jpg"})
        raise LedgerError("the catalogue broke off")

    source = Source(name="rows.csv", columns=("p",), picture_root=tmp_path, entries=entries)
    settings = FetchSettings(pictures=("p",), image_root=str(tmp_path), asking=Asking(limits=LIMITS))
    ledger = Ledger(tmp_path / "out")
    with ThreadPoolExecutor(1) as pool, pytest.raises(LedgerError, match="broke off"):
        fetch(entries(), ledger, settings, pool, 1, source, lambda more, **_: None)
    assert ledger.summary() is None


def test_a_changed_cell_and_moved_rows_cost_no_second_request(tmp_path: Path, server: Server) -> None:
    urls = [server.url(name) for name in ("picture", "other", "404")]
    first, _ = run(tmp_path, urls, **HERE)
    asked = len(server.asked)
    moved, counts = run(tmp_path, ["new.jpg", *urls, "newer.jpg"], **HERE)
    assert len(server.asked) == asked
    assert counts.parts_written == 1
    assert [record.pictures for record in moved[1:3]] == [record.pictures for record in first[:2]]
    assert [record.reason for record in moved] == ["missing-file", "", "", "not-found", "missing-file"]


def test_a_url_of_many_rows_is_asked_for_once(tmp_path: Path, server: Server) -> None:
    records, _ = run(tmp_path, [server.url("picture")] * 40 + [server.url("404")] * 40, **HERE)
    assert [server.asked.count(name) for name in ("picture", "404")] == [1, 1]
    assert [record.status for record in records] == ["ok"] * 40 + ["rejected"] * 40


def test_a_url_of_an_earlier_part_is_not_asked_for_again(tmp_path: Path, server: Server) -> None:
    urls = [server.url("picture"), server.url("404")]
    records, _ = run(tmp_path, [*urls, *["none.jpg"] * PART_ROWS, *urls], **HERE)
    assert [server.asked.count(name) for name in ("picture", "404")] == [1, 1]
    assert [record.status for record in records[-2:]] == ["ok", "rejected"]


def test_a_server_that_does_not_answer_keeps_later_parts_waiting_for_a_moment_only(
    tmp_path: Path, server: Server
) -> None:
    records, _ = run(tmp_path, [server.url("silent")] * PART_ROWS + [server.url("picture")], **HERE)
    assert [records[0].reason, records[-1].status] == ["timeout", "ok"]
    assert server.asked.count("silent") == LIMITS.attempts
    assert "silent" in server.asked[server.asked.index("picture") :]


def test_the_good_pictures_of_a_rejected_row_are_not_asked_for_again(tmp_path: Path, server: Server) -> None:
    both = [server.url("picture"), server.url("flaky")]
    (record,), _ = run(tmp_path, [both], limits=replace(LIMITS, attempts=1), **HERE)
    assert (record.reason, len(record.pictures), record.lost[0].reason) == ("server-error", 1, "server-error")
    (record,), _ = run(tmp_path, [both], retry=frozenset({"server-error"}), **HERE)
    assert (record.status, len(record.pictures)) == ("ok", 2)
    assert server.asked.count("picture") == 1


def test_only_the_named_classes_are_tried_again(tmp_path: Path, server: Server) -> None:
    values = [server.url(name) for name in ("404", "500", "429")]
    run(tmp_path, values, **HERE)
    server.asked.clear()
    run(tmp_path, values, retry=frozenset({"too-many-requests"}), **HERE)
    assert set(server.asked) - {"robots.txt"} == {"429"}


def test_a_probe_that_fails_stops_soon_and_leaves_its_urls_to_be_tried_again(tmp_path: Path, server: Server) -> None:
    values = [server.url(f"403?{number}") for number in range(400)]
    with pytest.raises(ProbeFailed, match=r"101 of the first 200 URLs failed: 101 forbidden"):
        run(tmp_path, values, **HERE)
    assert len(server.asked) < 250
    server.asked.clear()
    records, _ = run(tmp_path, values, probe=False, **HERE)
    assert {record.reason for record in records} == {"forbidden"}
    assert len(set(server.asked) - {"robots.txt"}) >= 400 - 64


def test_robots_are_respected_unless_told_otherwise(tmp_path: Path, server: Server) -> None:
    server.robots = "User-agent: *\nDisallow: /"
    values = [server.url("picture")]
    (record,), _ = run(tmp_path, values, **HERE)
    assert (record.reason, record.lost[0].robots, server.asked) == ("robots", "disallowed", ["robots.txt"])
    (record,), _ = run(tmp_path, values, robots=False, **HERE)
    assert (record.status, record.pictures[0].robots) == ("ok", "ignored")
    assert server.asked == ["robots.txt", "picture"]


def test_a_store_that_a_power_cut_damaged_is_begun_anew(tmp_path: Path, server: Server) -> None:
    values = [server.url("picture")]
    run(tmp_path, values, **HERE)
    (tmp_path / "out" / "downloads" / "urls.sqlite").write_bytes(b"no database" * 1000)
    (record,), _ = run(tmp_path, values, **HERE)
    assert record.status == "ok"
    assert server.asked.count("picture") == 1
