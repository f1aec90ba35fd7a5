"""URLs into files: each within its limits, again where that may help, and only from addresses that were checked."""

import asyncio
import os
import random
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import time

import aiohttp
from yarl import URL

from data.addresses import CheckedResolver
from data.asking import DownloadLimits, Visit
from data.failures import DownloadError
from data.hosts import Host, Hosts
from data.robots import AGENT, MAX_ROBOTS_BYTES, Answer, Robots, forbids_training
from data.taking import SIGNATURES
from data.wire import Response, Wire

USER_AGENT = f"{AGENT}/0.1 (shard builder; fetches product pictures of the catalogue it was given)"
RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
REDIRECTS = (301, 302, 303, 307, 308)
REASONS = {401: "forbidden", 403: "forbidden", 404: "not-found", 410: "not-found", 429: "too-many-requests"}
UNANSWERED = ("timeout", "connection")
HEAD_BYTES = 16  # that tell a picture from a web page
HELD_BYTES = 1 << 18  # of a picture in memory before the rest goes to its file as it comes
Beside = Callable[[], str]  # names that file


class Downloader:
    """Fetches URLs with bounded concurrency; use as an async context manager."""

    def __init__(self, limits: DownloadLimits, allowed_hosts: frozenset[str], robots: bool = True) -> None:
        self._limits = limits
        self._resolver = CheckedResolver(allowed_hosts, limits.timeout_s, limits.backoff_s)
        self._hosts = Hosts(limits.connections_per_host, limits.per_host_rate)
        self._slots = asyncio.Semaphore(limits.connections)
        self._robots = Robots(self._ask_robots) if robots else None
        self._chance = random.Random()

    async def __aenter__(self) -> "Downloader":
        # Bytes as the server sends them: what is packed again is no picture, and an unpacked bomb is never made.
        headers = {"User-Agent": USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"}
        self._wire = Wire(self._resolver, headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._wire.close()

    async def fetch(self, text: str, beside: Beside, visit: Visit) -> bytes | None:
        """Download a URL.

        Arguments: the URL; names the file that a picture too large to be held is written to as it comes, which is
        removed if this raises; `visit` is filled in.
        Returns: the bytes; None if they are in the file.
        Raises DownloadError with one of the classes of `data.failures`.
        """
        url = _parsed(text)
        visit.host = url.raw_host or ""
        host = self._hosts.of(visit.host)
        host.check()
        await self._permit(url, host, visit)
        try:
            data = await self._with_attempts(url, host, beside, visit)
        except DownloadError as error:
            if error.reason in UNANSWERED:
                host.failed(error.detail)
            elif error.reason != "gave-up":
                host.answered()
            raise
        host.answered()
        return data

    async def _permit(self, url: URL, host: Host, visit: Visit | None) -> None:
        """Raise DownloadError unless the host's address and its robots.txt let this URL be asked for."""
        # Here, and not only when connecting: aiohttp asks no resolver about an address in the URL itself.
        await self._resolver.check(url.raw_host or "", url.port or 0)
        verdict = "ignored"
        if self._robots is not None:
            try:
                verdict, delay_s = await self._robots.check(url)
                host.slow_down(delay_s)
            except DownloadError as error:
                if visit is not None:
                    visit.robots = "disallowed" if error.reason == "robots" else "unreachable"
                raise
        if visit is not None:
            visit.robots = verdict

    async def _with_attempts(self, url: URL, host: Host, beside: Beside, visit: Visit) -> bytes | None:
        limits, now = self._limits, asyncio.get_running_loop().time
        end: float | None = None
        failure: DownloadError | None = None
        for attempt in range(1, limits.attempts + 1):
            waiting = now()
            async with host, self._slots:
                host.check()
                # Waiting for one's turn is not held against a URL.
                end = now() + limits.deadline_s if end is None else end + now() - waiting
                visit.attempts = attempt
                try:
                    async with asyncio.timeout_at(min(now() + limits.timeout_s, end)):
                        return await self._follow(url, host, beside, visit)
                except TimeoutError:
                    failure = DownloadError("timeout", f"nothing whole after {limits.timeout_s:g} s", 0.0)
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    again = None if isinstance(error, aiohttp.ClientSSLError) else 0.0
                    failure = DownloadError("connection", f"{type(error).__name__}: {error}", again)
                except DownloadError as error:
                    failure = error
            if failure.retry_after_s is None or attempt == limits.attempts:
                break
            pause = limits.backoff_s * 2 ** (attempt - 1) * self._chance.uniform(0.5, 1.5)
            pause = max(pause, failure.retry_after_s)
            if failure.reason == "too-many-requests":
                host.hold(min(pause, limits.deadline_s))
            if now() + pause > end:
                failure.detail += f"; not asked again, as {limits.deadline_s:g} s are a URL's deadline"
                break
            await asyncio.sleep(pause)
        assert failure is not None
        raise failure

    async def _follow(self, url: URL, host: Host, beside: Beside, visit: Visit) -> bytes | None:
        for _ in range(self._limits.max_redirects + 1):
            with await self._wire.get(url) as response:
                target = response.headers.get("Location")
                if response.status not in REDIRECTS or not target:
                    return await self._receive(response, beside, visit)
            url = _joined(url, target)
            other = self._hosts.of(url.raw_host or "")
            await self._permit(url, other, visit)
            if other is not host:
                await asyncio.sleep(max(other.reserve(), 0.0))
                host = other
        raise DownloadError("redirects", f"more than {self._limits.max_redirects}, the last one to {str(url)[:200]}")

    async def _receive(self, response: Response, beside: Beside, visit: Visit) -> bytes | None:
        if response.status != 200:
            raise _refusal(response)
        wish = forbids_training(response.headers.getall("X-Robots-Tag", ()))
        if wish and self._robots is not None:
            visit.robots = "noai"
            raise DownloadError("noai", f"the server's X-Robots-Tag says {wish}")
        packing = response.headers.get("Content-Encoding", "identity").lower()
        if packing != "identity":
            raise DownloadError("packed", f"the server sends it packed ({packing[:50]}), though asked for plain bytes")
        if response.announced > self._limits.max_bytes:
            raise self._too_large(f"{response.announced:,} bytes announced")
        return await self._save(response, beside)

    async def _save(self, response: Response, beside: Beside) -> bytes | None:
        held, held_bytes, received, checked, spilled = list[bytes](), 0, 0, False, False
        try:
            while chunk := await response.content.readany():
                held.append(chunk)
                held_bytes += len(chunk)
                received += len(chunk)
                if received > self._limits.max_bytes:
                    raise self._too_large(f"{received:,} bytes came and there were more")
                if not checked and received >= HEAD_BYTES:
                    _check_head(b"".join(held))
                    checked = True
                if held_bytes >= HELD_BYTES:
                    _spill(beside(), held, "ab" if spilled else "wb")
                    held, held_bytes, spilled = [], 0, True
                if response.content.at_eof():
                    break
            if not spilled:
                return b"".join(held)
            _spill(beside(), held, "ab")
            return None
        except BaseException:
            if spilled:
                os.unlink(beside())
            raise

    def _too_large(self, what: str) -> DownloadError:
        return DownloadError("too-large", f"{what}, at most {self._limits.max_bytes:,} are taken")

    async def _ask_robots(self, url: URL) -> Answer:
        """The robots.txt of an origin, asked for like a picture: within the same limits, again where that may help."""
        limits, origin = self._limits, url
        answer, failure = Answer(0, ""), DownloadError("timeout", "")
        for attempt in range(1, limits.attempts + 1):
            host = self._hosts.of(url.raw_host or "")
            async with host, self._slots:
                try:
                    async with asyncio.timeout(limits.timeout_s):
                        answer = await self._robots_text(origin)
                    if answer.status not in RETRIED_STATUS or attempt == limits.attempts:
                        return answer
                except TimeoutError:
                    failure = DownloadError("timeout", f"nothing whole after {limits.timeout_s:g} s")
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    failure = DownloadError("connection", f"{type(error).__name__}: {error}")
            if attempt < limits.attempts:
                await asyncio.sleep(limits.backoff_s * 2 ** (attempt - 1) * self._chance.uniform(0.5, 1.5))
        raise failure

    async def _robots_text(self, url: URL) -> Answer:
        for _ in range(self._limits.max_redirects + 1):
            await self._resolver.check(url.raw_host or "", url.port or 0)
            with await self._wire.get(url) as response:
                target = response.headers.get("Location")
                if response.status not in REDIRECTS or not target:
                    text = bytearray()
                    if response.status == 200:
                        while chunk := await response.content.readany():
                            text += chunk
                            if len(text) >= MAX_ROBOTS_BYTES:
                                break
                    return Answer(response.status, text[:MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace"))
            url = _joined(url, target)
        return Answer(0, "")


def _parsed(text: str) -> URL:
    """A URL in the one form that is checked and connected to. Raises DownloadError (bad-url)."""
    try:
        url = URL(text)
        port = url.port
    except ValueError as error:
        raise DownloadError("bad-url", f"{error}") from error
    if url.scheme not in ("http", "https") or not url.raw_host or not port or url.raw_user is not None:
        raise DownloadError("bad-url", f"{text[:200]}: only plain http and https are fetched")
    return url


def _joined(url: URL, target: str) -> URL:
    """Where a redirect leads. Raises DownloadError (bad-url)."""
    try:
        return _parsed(str(url.join(URL(target))))
    except ValueError as error:
        raise DownloadError("bad-url", f"redirected to {target[:200]!r}: {error}") from error


def _refusal(response: Response) -> DownloadError:
    status = response.status
    reason = REASONS.get(status, "server-error" if status >= 500 else "http-error")
    retry = _retry_after_s(response.headers.get("Retry-After", "")) if status in RETRIED_STATUS else None
    return DownloadError(reason, f"HTTP {status}", retry)


def _retry_after_s(value: str) -> float:
    """Seconds of a Retry-After header, which has a number or a date; 0 for what is neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _check_head(head: bytes) -> None:
    """Stop a download that starts like no picture; whether it is one is found out by decoding it."""
    if not head.startswith((*SIGNATURES, b"BM", b"II+\0", b"MM\0+")):
        raise DownloadError("not-a-picture", f"it starts with {head[:HEAD_BYTES]!r}")


def _spill(path: str, chunks: list[bytes], mode: str) -> None:
    with open(path, mode) as file:
        file.writelines(chunks)
