"""What a page does in a real browser: a headless Chromium over the DevTools protocol, nothing but
the standard library.

    with Browser() as browser:
        seen = browser.visit("report.html", width=390)
    assert not seen.errors and not seen.asked and seen.inside
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0  # seconds for one answer
# Scroll through the page, so that what is drawn late is drawn; then measure.
LOOK = """(async () => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  for (let y = 0; y < document.documentElement.scrollHeight; y += 700) {
    scrollTo({ top: y, behavior: "instant" });
    await pause(60);
  }
  for (const place of document.querySelectorAll(".plot")) {
    // a busy machine draws late
    for (let tries = 0; tries < 100 && !place.querySelector("svg"); tries++) {
      place.scrollIntoView({ behavior: "instant" });
      await pause(50);
    }
  }
  scrollTo({ top: 0, behavior: "instant" });
  await pause(250);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const cut = all(".wide").filter((box) => box.scrollWidth > box.clientWidth + 1);
  const told = (box) => {
    const before = box.previousElementSibling;
    return before && getComputedStyle(before).display !== "none";
  };
  const places = all(".plot");
  const words = all(".plot text").filter((one) => one.textContent.trim());
  const clipped = words.filter((one) => {
    const mine = one.getBoundingClientRect(), plot = one.closest(".plot").getBoundingClientRect();
    return mine.width && (mine.left < plot.left - 1 || mine.right > plot.right + 1);
  });
  return {
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    tables: all("table").length,
    cut: cut.length,
    silent: cut.filter((box) => !told(box)).length,
    plots: places.length,
    empty: places.filter((one) => !one.querySelector("svg")).length,
    clipped: clipped.map((one) => one.textContent),
    links: all(".plot a, .plot [onclick], .plot img").length,
    payload: "payloadRan" in window,
  };
})()"""


@dataclass
class Seen:
    """What one visit showed."""

    # of the console, exceptions and violations of the policy among them
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # addresses other than the page itself
    dialogs: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def payload(self) -> bool:
        """Whether a text ran: it opened a dialog, or set `window.payloadRan`."""
        return bool(self.dialogs) or bool(self.facts.get("payload"))

    @property
    def inside(self) -> bool:
        """Whether nothing stands outside the width of the window, and every table that scrolls says
        so.
        """
        return self.facts["scroll"] <= self.facts["width"] and not self.facts["silent"]

    @property
    def faults(self) -> list[str]:
        """What should not be, in words."""
        found = [
            *self.errors,
            *(f"asked for {address}" for address in self.asked),
            *(["a text ran"] if self.payload else []),
        ]
        told = {
            "empty": "figures not drawn",
            "clipped": "words cut off",
            "links": "links in figures",
            "silent": "tables cut off",
        }
        found += [f"{what}: {self.facts[name]}" for name, what in told.items() if self.facts[name]]
        wide = f"{self.facts['scroll']} pixels in a window of {self.facts['width']}"
        return found + ([wide] if self.facts["scroll"] > self.facts["width"] else [])


def chromium() -> str | None:
    """The browser on this machine, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """A Chromium of our own, with a fresh profile, as long as the `with` lasts. Raises RuntimeError
    where there is none.
    """

    def __init__(self, program: str | None = None, flags: Sequence[str] = FLAGS):
        found = program or chromium()
        if found is None:
            raise RuntimeError("browser: needs a Chromium on the PATH, found none")
        self.command = [found, *flags]

    def __enter__(self) -> Browser:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        command = [*self.command, f"--user-data-dir={self.profile.name}", "about:blank"]
        # The protocol is spoken over the child's descriptors 3 and 4.
        script = f'exec 3<&{there} 4>&{back}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self._number, self._rest, self._events = 0, b"", list[dict[str, Any]]()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(Exception):
            self.tell("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._out)
        os.close(self._in)
        self.profile.cleanup()

    # -- the protocol ------------------------------------------------------------------------------

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(until - time.monotonic(), 0))[0]:
                raise TimeoutError("browser: no answer in time")
            if not (more := os.read(self._in, 1 << 20)):
                raise RuntimeError("browser: it went away")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def tell(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | (
            {"sessionId": session} if session else {}
        )
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            found = self._read(until)
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"browser: {method}: {found['error']}")
                return dict(found["result"])
            self._note(found)

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        # nothing goes on before it is closed
        if event.get("method") == "Page.javascriptDialogOpening":
            self._number += 1
            close = {
                "id": self._number,
                "method": "Page.handleJavaScriptDialog",
                "params": {"accept": False},
            }
            os.write(
                self._out, json.dumps(close | {"sessionId": event["sessionId"]}).encode() + b"\0"
            )

    def _wait(self, method: str) -> None:
        until = time.monotonic() + PATIENCE
        while not any(event.get("method") == method for event in self._events):
            self._note(self._read(until))

    # -- pages -------------------------------------------------------------------------------------

    def visit(
        self,
        page: Path | str,
        width: int = 1280,
        height: int = 900,
        picture: Path | str | None = None,
        dark: bool = False,
        script: str = "",
        printed: str = "",
    ) -> Seen:
        """Open a file, scroll through it, run `script` (an expression) in it.

        Args:
            picture: a PNG of the whole page.
            printed: an expression that is run last, with the style sheets of paper.
        """
        self._events.clear()
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable", session)
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.tell("Emulation.setEmulatedMedia", session, features=scheme)
        address = Path(page).resolve().as_uri()
        self._events.clear()
        self.tell("Page.navigate", session, url=address)
        self._wait("Page.loadEventFired")
        seen = Seen(facts=dict(self._run(session, LOOK)))
        if script:
            seen.facts["script"] = self._run(session, script)
        if picture is not None:
            shot = self.tell(
                "Page.captureScreenshot", session, format="png", captureBeyondViewport=True
            )
            Path(picture).write_bytes(base64.b64decode(shot["data"]))
        if printed:
            self.tell("Emulation.setEmulatedMedia", session, media="print", features=scheme)
            seen.facts["printed"] = self._run(session, printed)
        for event in self._events:
            self._sort(event, seen, address)
        self.tell("Target.closeTarget", targetId=target)
        return seen

    def _run(self, session: str, expression: str) -> Any:
        answer = self.tell(
            "Runtime.evaluate",
            session,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"browser: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    @staticmethod
    def _sort(event: dict[str, Any], seen: Seen, address: str) -> None:
        method, what = event.get("method"), event.get("params", {})
        if method == "Page.javascriptDialogOpening":
            seen.dialogs.append(what["message"])
        elif method == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            seen.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and what["type"] in (
            "error",
            "warning",
            "assert",
        ):
            seen.errors.append(
                " ".join(str(part.get("value", part.get("description"))) for part in what["args"])
            )
        elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            seen.errors.append(what["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = what["request"]["url"]
            if url.split("#")[0] != address and not url.startswith("data:"):
                seen.asked.append(url)
