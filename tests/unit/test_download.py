"""Turns by host, addresses, robots.txt and X-Robots-Tag, the probe, trying again: what a fetch does on the web."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from yarl import URL

from data.addresses import CheckedResolver, is_public
from data.failures import DownloadError, failure_classes, remedies
from data.hosts import GIVEN_UP_AFTER, Host
from data.ledger import Lost
from data.probe import PROBED, Probe, ProbeFailed
from data.robots import AGENT, Answer, Robots, forbids_training


def lost(number: int, reason: str) -> Lost:
    return Lost(url=f"http://a/{number}", reason=reason, detail="d", asked=number, host="a")


def robots_of(status: int, text: str = "") -> Robots:
    async def ask(url: URL) -> Answer:
        assert url.path == "/robots.txt"
        return Answer(status, text)

    return Robots(ask)


@pytest.mark.parametrize(
    ("status", "text", "path", "verdict"),
    [
        (200, "User-agent: *\nDisallow: /photos/", "/photos/a.jpg", "robots"),
        (200, "User-agent: *\nDisallow: /photos/", "/pictures/a.jpg", "allowed"),
        (200, f"User-agent: {AGENT}\nAllow: /\n\nUser-agent: *\nDisallow: /", "/a.jpg", "allowed"),
        (200, f"User-agent: {AGENT}\nDisallow: /\n\nUser-agent: *\nAllow: /", "/a.jpg", "robots"),
        (200, "\0\xff<html>", "/a.jpg", "allowed"),
        (404, "", "/a.jpg", "none"),
        (403, "", "/a.jpg", "none"),
        (429, "", "/a.jpg", "robots-unreachable"),
        (503, "", "/a.jpg", "robots-unreachable"),
    ],
)
def test_robots_txt_decides(status: int, text: str, path: str, verdict: str) -> None:
    async def check() -> str:
        try:
            return (await robots_of(status, text).check(URL(f"http://shop.example{path}")))[0]
        except DownloadError as error:
            return error.reason

    assert asyncio.run(check()) == verdict


def test_a_crawl_delay_is_passed_on_and_an_origin_is_asked_once() -> None:
    asked = []

    async def ask(url: URL) -> Answer:
        asked.append(url)
        return Answer(200, "User-agent: *\nCrawl-delay: 2.5")

    async def check() -> list[tuple[str, float]]:
        robots = Robots(ask)
        return await asyncio.gather(*(robots.check(URL(f"http://shop.example/{number}")) for number in range(9)))

    assert asyncio.run(check()) == [("allowed", 2.5)] * 9
    assert asked == [URL("http://shop.example/robots.txt")]


@pytest.mark.parametrize(
    ("headers", "wish"),
    [
        ([], None),
        (["noindex, nofollow"], None),
        (["NoAI"], "noai"),
        (["noindex", "all, noimageai"], "noimageai"),
        (["somebot: noai"], None),
        ([f"{AGENT}: noai"], "noai"),
        (["unavailable_after: 25 Jun 2026 15:00:00 PST, noai"], "noai"),
    ],
)
def test_x_robots_tag_is_read_as_it_is_written(headers: list[str], wish: str | None) -> None:
    assert forbids_training(headers) == wish


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("2606:4700::1111", True), ("100.100.100.200", False), ("168.63.129.16", False)],
)
def test_metadata_services_are_not_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def infos(address: str) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]


def test_a_host_is_looked_up_once_and_its_first_answer_holds() -> None:
    answers = iter(["93.184.216.34", "127.0.0.1"])

    async def ask() -> list[str]:
        resolver = CheckedResolver(frozenset(), 5.0, lookup=lambda *_: infos(next(answers)))
        found = [await resolver.resolve("rebinding.example", 80) for _ in range(3)]
        return [one["host"] for addresses in found for one in addresses]

    assert asyncio.run(ask()) == ["93.184.216.34"] * 3


def test_a_name_server_that_hangs_costs_its_limit_and_no_more() -> None:
    release = threading.Event()

    def hang(*_: Any) -> list[Any]:
        release.wait(30)
        return []

    async def ask() -> str:
        resolver = CheckedResolver(frozenset(), 0.05, lookup=hang)
        with pytest.raises(DownloadError) as raised:
            await resolver.check("slow.example", 80)
        return raised.value.reason

    assert asyncio.run(ask()) == "dns"
    release.set()


def test_a_lookup_that_may_pass_is_tried_again() -> None:
    tries = []

    def flaky(*_: Any) -> list[Any]:
        tries.append(1)
        if len(tries) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "later")
        return infos("93.184.216.34")

    asyncio.run(CheckedResolver(frozenset(), 5.0, 0.001, lookup=flaky).check("flaky.example", 80))
    assert len(tries) == 3


def test_tokens_come_at_the_rate_after_a_burst() -> None:
    async def pauses() -> list[float]:
        host = Host("a", 16, rate=10)
        return [host.reserve() for _ in range(24)]

    found = asyncio.run(pauses())
    assert sum(pause <= 0 for pause in found) == 3  # a quarter of a second of its rate, and one
    assert found[-1] == pytest.approx(2.05, abs=0.2)


def test_a_slower_wish_of_the_site_wins_and_a_hold_makes_all_wait() -> None:
    async def pauses() -> tuple[float, float]:
        host = Host("a", 16, rate=0)
        host.slow_down(2.0)
        first = [host.reserve() for _ in range(3)][-1]
        host.hold(60)
        return first, host.reserve()

    slowed, held = asyncio.run(pauses())
    assert slowed > 1.5
    assert held > 59


def test_a_host_that_never_answers_is_given_up_until_it_does() -> None:
    async def use() -> None:
        host = Host("a", 16, rate=0)
        for _ in range(GIVEN_UP_AFTER - 1):
            host.failed("timeout")
        host.answered()
        for _ in range(GIVEN_UP_AFTER):
            host.check()
            host.failed("timeout")
        with pytest.raises(DownloadError, match=r"gave-up.*in a row"):
            host.check()

    asyncio.run(use())


def test_the_probe_stops_at_the_first_failure_beyond_half_and_names_what_helps() -> None:
    probe = Probe(wanted=True)
    assert [probe.enter() for _ in range(PROBED + 1)] == [True] * PROBED + [False]
    reasons: Iterator[str] = iter(["refused-address"] * 70 + ["robots"] * 31)
    for number in range(PROBED // 2):
        probe.failed(lost(number, next(reasons)))
    with pytest.raises(ProbeFailed) as raised:
        probe.failed(lost(999, next(reasons)))
    said = str(raised.value)
    for part in (
        "101 of the first 200",
        "70 refused-address, 31 robots",
        "--allow-host a ",
        "--no-robots",
        "--no-probe",
    ):
        assert part in said
    assert len(raised.value.urls) == 101
    assert not Probe(wanted=False).enter()


def test_classes_are_named_by_word_or_number() -> None:
    assert failure_classes("dns, 429,5xx") == {"dns", "too-many-requests", "server-error"}
    for wrong in ("", "dns,nope"):
        with pytest.raises(ValueError, match="is no class of failure; they are bad-url"):
            failure_classes(wrong)
    assert remedies({"dns": 1, "not-a-picture": 7}) == "check the names and the network, then --retry dns"
