"""A Chromium without a window, driven over a pipe by its DevTools protocol, and what a page says in it."""

import base64
import json
import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latte_fast.media.picture import read_picture

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# descriptors that Chromium reads commands from and writes answers to
COMMANDS, ANSWERS = 3, 4
# as root there is no sandbox, and in a container little shared memory
SWITCHES = ("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
            "--hide-scrollbars", "--disable-background-networking", "--disable-component-update",
            "--disable-extensions", "--disable-sync", "--force-device-scale-factor=1", "--window-size=1000,1000",
            "--remote-debugging-pipe")  # fmt: skip
# seconds after which a browser that says nothing has failed
PATIENCE = 60.0


class Browser:
    """A browser with one page.

    Args:
        write: descriptor of commands.
        read: descriptor of answers and events.
    """

    def __init__(self, write: int, read: int):
        self.write, self.read = write, read
        self.number, self.rest = 0, b""
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """Sends a command and returns its answer; events that come before it are kept."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        os.write(
            self.write, json.dumps({"id": self.number, "method": method, "params": given} | session).encode() + b"\0"
        )
        while True:
            said = self.next()
            if said.get("id") == self.number:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]

    def next(self) -> dict[str, Any]:
        """Returns what the browser says next; an event is kept too."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE:g} s"
            part = os.read(self.read, 1 << 20)
            assert part, "the browser ended"
            self.rest += part
        said, _, self.rest = self.rest.partition(b"\0")
        found = json.loads(said)
        if "method" in found:
            self.events.append(found)
        return found

    def open(self, path: Path) -> None:
        """Loads a file, whole."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.next()

    def ask(self, expression: str) -> Any:
        """Returns the value of an expression in the page; of a promise, what it becomes."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def errors(self) -> list[str]:
        """Returns what went wrong in the page since it was opened: errors, warnings, exceptions, failed loads."""
        found = []
        for event in self.events:
            given = event["params"]
            if event["method"] == "Runtime.consoleAPICalled" and given["type"] in ("error", "assert", "warning"):
                found.append(f"console: {[x.get('value') for x in given['args']]}")
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(f"exception: {given['exceptionDetails'].get('exception', {}).get('description')}")
            elif event["method"] == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {given['entry']['text']}")
            elif event["method"] == "Network.loadingFailed":
                found.append(f"not loaded: {given['errorText']}")
        return found

    def asked_for(self) -> list[str]:
        """Returns the start of each address that the page asked for."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [given["request"]["url"][:40] for given in sent]

    def picture(self, selector: str, folder: Path) -> np.ndarray:
        """Returns what an element looks like now, (H, W, 3)."""
        box = self.ask(f"(e => {{const r = e.getBoundingClientRect(); return [r.x + scrollX, r.y + scrollY, r.width, "
                       f"r.height]}})(document.querySelector({json.dumps(selector)}))")  # fmt: skip
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        (folder / "shot.png").write_bytes(base64.b64decode(shot["data"]))
        return read_picture(folder / "shot.png")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Starts a browser, and ends it; skips where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("pages are looked at in Chromium, which is not here: apt-get install chromium")
    ends = [fcntl(end, F_DUPFD, 10) for end in (*os.pipe(), *os.pipe())]
    command_out, command_in, answer_out, answer_in = ends
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, command_out, COMMANDS), (os.POSIX_SPAWN_DUP2, answer_in, ANSWERS)]
        actions += [(os.POSIX_SPAWN_CLOSE, end) for end in ends]
        child = os.posix_spawn(found, [found, *SWITCHES, f"--user-data-dir={home}"], os.environ, file_actions=actions)
        os.close(command_out)
        os.close(answer_in)
        try:
            browser = Browser(command_in, answer_out)
            yield browser
            browser.session = None
            with suppress(AssertionError, OSError):
                browser.call("Browser.close")
        finally:
            os.close(command_in)
            os.close(answer_out)
            os.waitpid(child, 0)
