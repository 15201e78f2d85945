"""A headless Chromium, spoken to by its DevTools protocol."""

import asyncio
import base64
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0"
)


def find_browser() -> str | None:
    """The path of Chromium; Debian's package is installed first where it is absent and that is possible."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        for command in (
            "apt-get install -qq -y chromium",
            "apt-get update -qq",
            "apt-get install -qq -y chromium",
        ):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(
                command.split(), env=environment, capture_output=True, timeout=240, check=False
            )
            if done.returncode == 0 and shutil.which(NAMES[0]):
                break
        found = shutil.which(NAMES[0])
    return found


@contextmanager
def _running(browser: str, profile: Path):
    command = [browser, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.exists() and "\n" in port_file.read_text()):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("Chromium did not start")
            time.sleep(0.05)
        yield int(port_file.read_text().split()[0])
    finally:
        process.terminate()
        process.wait()


class Page:
    """Tells what a page did while it loaded: `errors`, `requests`, values of expressions, pictures of it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket, self.number = socket, 0
        self.errors: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=60)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self._event(message)

    def _event(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if message["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        if message["method"] == "Log.entryAdded" and parameters["entry"]["level"] in (
            "error",
            "warning",
        ):
            self.errors.append(parameters["entry"]["text"])
        if message["method"] == "Runtime.consoleAPICalled" and parameters["type"] in (
            "error",
            "warning",
        ):
            self.errors.append(str(parameters["args"]))

    async def value(self, expression: str) -> Any:
        result = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        return result["result"].get("value")


async def _visit(
    port: int, address: str, width: int, scheme: str, expressions: dict[str, str], picture: Path
):
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
            target = next(one for one in await response.json() if one["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            for domain in ("Page", "Network", "Log", "Runtime"):
                await page.call(f"{domain}.enable")
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            await page.call("Emulation.setEmulatedMedia", features=media)
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            await page.call("Emulation.setDeviceMetricsOverride", **size)
            await page.call("Page.navigate", url=address)
            while await page.value("document.readyState") != "complete":
                await asyncio.sleep(0.05)
            values = {
                name: await page.value(expression) for name, expression in expressions.items()
            }
            shot = await page.call("Page.captureScreenshot", captureBeyondViewport=True)
            picture.write_bytes(base64.b64decode(shot["data"]))
            return page, values


def visit(
    browser: str,
    profile: Path,
    address: str,
    expressions: dict[str, str],
    picture: Path,
    width=1200,
    scheme="light",
):
    """Open a page: (what it did, the values of JavaScript expressions); a picture of it goes to `picture`."""
    with _running(browser, profile) as port:
        return asyncio.run(_visit(port, address, width, scheme, expressions, picture))
