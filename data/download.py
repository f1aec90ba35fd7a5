"""URLs into files: one at a time checked, bounded and retried; only ever from addresses that were checked."""

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

USER_AGENT = "phi3-vision-tuner/0.1 (shard builder; fetches product pictures of the catalogue it was given)"
RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
REASONS = {401: "forbidden", 403: "forbidden", 404: "not-found", 410: "not-found", 429: "too-many-requests"}
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """What one URL may cost."""

    max_bytes: int = 32 << 20
    timeout_s: float = 30.0
    """By the clock, for one attempt: name, connection, redirects and content together."""
    attempts: int = 4
    backoff_s: float = 1.0
    """Before the second attempt; doubled before each further one."""
    max_redirects: int = 5
    concurrency: int = 64


class DownloadError(Exception):
    """A URL that gave no bytes; `reason` is the class it is counted under."""

    def __init__(self, reason: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s
        """Not None: worth another attempt, after at least so long."""


class CheckedResolver(AbstractResolver):
    """Resolves each host once and hands out only public addresses, or any of a host that is allowed."""

    def __init__(self, allowed_hosts: frozenset[str]) -> None:
        self._allowed = allowed_hosts
        self._known: dict[tuple[str, int], asyncio.Task[list[ResolveResult]]] = {}

    async def check(self, host: str, port: int) -> None:
        """Raise DownloadError (dns | refused-address) unless all of the host's addresses may be connected to."""
        await asyncio.shield(self._task(host, port))

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The checked addresses; aiohttp connects to these and to no others."""
        return await asyncio.shield(self._task(host, port))

    def _task(self, host: str, port: int) -> "asyncio.Task[list[ResolveResult]]":
        task = self._known.get((host, port))
        if task is None or (task.done() and task.exception() is not None and _passes(task.exception())):
            task = self._known[host, port] = asyncio.ensure_future(self._resolve(host, port))
        return task

    async def _resolve(self, host: str, port: int) -> list[ResolveResult]:
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise DownloadError("dns", f"{host}: {error}", 0.0 if passing else None) from error
        addresses = []
        for family, _, proto, _, address in infos:
            ip = str(address[0])
            if host not in self._allowed and not _public(ip):
                raise DownloadError(
                    "refused-address", f"{host} is {ip}, not a public address; --allow-host {host} permits it"
                )
            addresses.append(
                ResolveResult(
                    hostname=host,
                    host=ip,
                    port=port,
                    family=family,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return addresses

    async def close(self) -> None:
        """Nothing is held open."""


def _passes(error: BaseException | None) -> bool:
    return isinstance(error, DownloadError) and error.retry_after_s is not None


def _public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # An IPv4 address in IPv6 clothes (mapped, 6to4, NAT64) is judged as what it leads to.
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast


class Downloader:
    """Fetches URLs with bounded concurrency; use as an async context manager."""

    def __init__(self, limits: DownloadLimits, allowed_hosts: frozenset[str]) -> None:
        self._limits = limits
        self._resolver = CheckedResolver(allowed_hosts)
        self._slots = asyncio.Semaphore(limits.concurrency)

    async def __aenter__(self) -> "Downloader":
        # Bytes as the server sends them: what is packed again is no picture, and an unpacked bomb is never made.
        connector = aiohttp.TCPConnector(resolver=self._resolver, limit=self._limits.concurrency, use_dns_cache=False)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, url: str, path: Path) -> int:
        """Download a URL into a file. Returns the number of attempts it took.

        Raises DownloadError: bad-url | dns | refused-address | forbidden | not-found | too-many-requests |
        server-error | http-error | redirects | timeout | connection | too-large.
        """
        async with self._slots:
            for attempt in range(1, self._limits.attempts + 1):
                try:
                    async with asyncio.timeout(self._limits.timeout_s):
                        await self._attempt(url, path)
                    return attempt
                except TimeoutError:
                    failure = DownloadError("timeout", f"nothing whole after {self._limits.timeout_s:g} s", 0.0)
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    failure = DownloadError("connection", f"{type(error).__name__}: {error}", 0.0)
                except DownloadError as error:
                    failure = error
                if failure.retry_after_s is None or attempt == self._limits.attempts:
                    raise failure
                pause = self._limits.backoff_s * 2 ** (attempt - 1)
                await asyncio.sleep(min(max(pause, failure.retry_after_s), self._limits.timeout_s))
        raise AssertionError("every attempt returns or raises")

    async def _attempt(self, url: str, path: Path) -> None:
        for _ in range(self._limits.max_redirects + 1):
            await self._check(url)
            async with self._session.get(url, allow_redirects=False) as response:
                target = response.headers.get("Location")
                if response.status in (301, 302, 303, 307, 308) and target:
                    url = urljoin(url, target)
                    continue
                if response.status != 200:
                    raise _refusal(response)
                await self._save(response, path)
                return
        raise DownloadError("redirects", f"more than {self._limits.max_redirects}, the last one to {url[:200]}")

    async def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise DownloadError("bad-url", f"{url[:200]}: {error}") from error
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            raise DownloadError("bad-url", f"{url[:200]}: only plain http and https are fetched")
        # Also for an address in the URL itself, which aiohttp would connect to without asking the resolver.
        await self._resolver.check(host, port or (443 if parts.scheme == "https" else 80))

    async def _save(self, response: aiohttp.ClientResponse, path: Path) -> None:
        received = 0
        with path.open("wb") as stream:
            async for chunk in response.content.iter_chunked(CHUNK):
                received += len(chunk)
                if received > self._limits.max_bytes:
                    raise DownloadError("too-large", f"more than {self._limits.max_bytes:,} bytes")
                stream.write(chunk)


def _refusal(response: aiohttp.ClientResponse) -> DownloadError:
    status = response.status
    reason = REASONS.get(status, "server-error" if status >= 500 else "http-error")
    retry: float | None = None
    if status in RETRIED_STATUS:
        after: Any = response.headers.get("Retry-After", "")
        retry = float(after) if after.isdigit() else 0.0
    return DownloadError(reason, f"HTTP {status}", retry)
