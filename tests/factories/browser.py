"""A headless Chromium, spoken to by its own protocol: pages opened, keys pressed, errors of the console collected."""

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

LIMIT_S = 120


def chromium() -> str | None:
    """The browser's program, or None where there is none."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Tab:
    """One page of a running browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.errors: list[str] = []
        self.loaded = False
        self._number = 0

    async def send(self, method: str, **values: Any) -> dict[str, Any]:
        """Call a method of the protocol; what it answers."""
        self._number += 1
        number = self._number
        await self.socket.send_json({"id": number, "method": method, "params": values})
        while True:
            message = await self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await self.socket.receive(timeout=LIMIT_S)).data)
        kind, values = message.get("method"), message.get("params", {})
        if kind == "Page.loadEventFired":
            self.loaded = True
        if kind == "Runtime.exceptionThrown":
            self.errors.append(str(values["exceptionDetails"]))
        if kind == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.errors.append(str(values["args"]))
        if kind == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.errors.append(values["entry"]["text"])
        return message

    async def open(self, page: Path) -> float:
        """Open a file; the seconds until it was loaded and its first frame drawn."""
        self.loaded = False
        begun = time.perf_counter()
        await self.send("Page.navigate", url=page.as_uri())
        while not self.loaded:
            await self._receive()
        await self.value("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        return time.perf_counter() - begun

    async def value(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key: `code` is the Windows virtual key code."""
        values = {"key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **values)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **values)

    async def type(self, text: str) -> None:
        """Type text into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def choose(self, identity: str, value: str, event: str = "change") -> None:
        """Give a field of the page a value, as a person would."""
        field = f"document.getElementById({json.dumps(identity)})"
        await self.value(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event({json.dumps(event)}))")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + LIMIT_S
        while not await self.value(expression):
            assert time.monotonic() < end, expression
            await asyncio.sleep(0.03)

    async def colours(self, scheme: str) -> None:
        """Have the page see a person's preference: light or dark."""
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def screenshot(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode((await self.send("Page.captureScreenshot"))["data"]))


def browse(work: Callable[[Tab], Awaitable[None]], width: int = 1280, height: int = 1600) -> None:
    """Do `work` in a tab of a browser of its own."""
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
             f"--window-size={width},{height}", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            asyncio.run(_in_tab(Path(profile) / "DevToolsActivePort", work))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


async def _in_tab(told: Path, work: Callable[[Tab], Awaitable[None]]) -> None:
    end = time.monotonic() + LIMIT_S
    while not (told.is_file() and told.read_text().count("\n")):
        assert time.monotonic() < end, "the browser does not start"
        await asyncio.sleep(0.05)
    port = told.read_text().split("\n")[0]
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            where = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
        async with session.ws_connect(where, max_msg_size=0) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Log"):
                await tab.send(f"{domain}.enable")
            await work(tab)
