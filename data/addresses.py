"""Host names → addresses that may be connected to; each host is looked up once, no private one is handed out."""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from data.failures import DownloadError

KEPT_HOSTS = 20_000
LOOKUPS_AT_ONCE = 64
TRIES = 3
# Public by its number, but inside a virtual machine of Azure it is the host's own service.
_METADATA = frozenset({"168.63.129.16"})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Lookup = Callable[..., list[Any]]


class CheckedResolver(AbstractResolver):
    """Looks each host up once and hands out its addresses if all are public, or if the host is allowed.

    What it hands out is what aiohttp connects to: there is no second look-up that could answer otherwise.
    """

    def __init__(
        self, allowed_hosts: frozenset[str], timeout_s: float, pause_s: float = 1.0, lookup: Lookup = socket.getaddrinfo
    ) -> None:
        self._allowed = frozenset(host.lower().strip("[]") for host in allowed_hosts)
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._lookup = lookup
        self._known: dict[tuple[str, int], asyncio.Task[list[ResolveResult]]] = {}
        self._running = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def check(self, host: str, port: int) -> None:
        """Raise DownloadError (dns | refused-address) unless all of the host's addresses may be connected to."""
        await self.resolve(host, port)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The checked addresses. Raises DownloadError (dns | refused-address)."""
        task = self._known.get((host, port))
        if task is None:
            task = self._known[host, port] = asyncio.ensure_future(self._resolve(host, port))
            while len(self._known) > KEPT_HOSTS:
                self._known.pop(next(iter(self._known)))
        return task.result() if task.done() else await asyncio.shield(task)

    async def _resolve(self, host: str, port: int) -> list[ResolveResult]:
        addresses = []
        for family, _, proto, _, address in await self._infos(host, port):
            ip = str(address[0])
            if host.lower() not in self._allowed and not is_public(ip):
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

    async def _infos(self, host: str, port: int) -> list[Any]:
        for attempt in range(1, TRIES + 1):
            try:
                async with self._running, asyncio.timeout(self._timeout_s):
                    return await _in_thread(self._lookup, host, port, 0, socket.SOCK_STREAM)
            except TimeoutError:
                raise DownloadError("dns", f"{host}: no answer in {self._timeout_s:g} s") from None
            except (OSError, UnicodeError) as error:
                passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
                if not passing or attempt == TRIES:
                    raise DownloadError("dns", f"{host}: {error}") from error
                await asyncio.sleep(self._pause_s * 2 ** (attempt - 1))
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Nothing is held open; a look-up that still hangs does so in a thread that nobody waits for."""


async def _in_thread(function: Lookup, *arguments: Any) -> Any:
    """Call a function that may hang, in a thread of its own that the end of the program does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True).start()
    return await future


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also in the IPv6 clothes of an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Mapped, 6to4 or NAT64: judged as what it leads to.
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast and str(ip) not in _METADATA
