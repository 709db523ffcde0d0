"""Browser: headless Chromium, driven through a pair of pipes, that says what a page does at a given width."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# How far content sticks out of the window, and which elements do; what scrolls inside its own box does not count.
OVERFLOW = """(() => {
  const width = document.documentElement.clientWidth, out = [];
  for (const element of document.body.querySelectorAll('*')) {
    if (element.closest('.scroll') && !element.matches('.scroll')) continue;
    if (element.closest('svg') && !element.matches('svg')) continue;
    const box = element.getBoundingClientRect();
    if (box.width > 0 && (box.right > width + 1 || box.left < -1)) out.push(element.tagName + '.' + element.className);
  }
  return {scroll: document.documentElement.scrollWidth - width, out: out.slice(0, 10)};
})()"""

# Texts of charts that stick out of the chart by more than two pixels, or that lie over each other.
CLIPPED = """(() => {
  const out = [];
  for (const chart of document.querySelectorAll('.charts svg')) {
    const frame = chart.getBoundingClientRect();
    const boxes = [...chart.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    for (const [text, box] of boxes)
      if (box.left < frame.left - 2 || box.right > frame.right + 2
          || box.top < frame.top - 2 || box.bottom > frame.bottom + 2)
        out.push('outside: ' + text);
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
      const [a, p] = boxes[i], [b, q] = boxes[j];
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 3 && high > 3) out.push('overlap: ' + a + ' | ' + b);
    }
  }
  return out.slice(0, 20);
})()"""


def find_browser() -> str | None:
    """Chromium on this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass(frozen=True)
class Seen:
    """What a page did."""

    sideways: int  # pixels that the page can be scrolled sideways
    outside: list[str]  # elements that stick out of the window
    clipped: list[str]  # texts of charts that are cut off or overlap
    complaints: list[str]  # of the console and the log
    requests: list[str]  # addresses asked for, the page itself and data: left out


class Browser:
    """A running Chromium; close it by leaving the block."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, to_write = os.pipe(), os.pipe()
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars"
            f" --disable-extensions --remote-debugging-pipe --user-data-dir={profile} about:blank"
        )
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        call = f"exec {program} {flags} 3<&{to_read[0]} 4>&{to_write[1]}"
        self.process = subprocess.Popen(
            ["bash", "-c", call],
            pass_fds=(to_read[0], to_write[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read[0])
        os.close(to_write[1])
        self.out = os.fdopen(to_read[1], "wb", buffering=0)
        self.into = os.fdopen(to_write[0], "rb")
        self.number, self.events, self.left_over = 0, [], b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
        self.out.close()
        self.into.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come first are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if hasattr(self, "session"):
            message["sessionId"] = self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.left_over:
            part = self.into.read1(1 << 20)
            assert part, "Chromium ended"
            self.left_over += part
        text, _, self.left_over = self.left_over.partition(b"\0")
        return dict(json.loads(text))

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def show(self, page: Path, width: int, *, dark: bool, unfold: bool = True) -> Seen:
        """Open a file at a width in CSS pixels."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Page.navigate", url=page.absolute().as_uri())
        until = time.monotonic() + 30
        while self.evaluate("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < until, "the page does not load"
            time.sleep(0.05)
        if unfold:
            self.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        overflow = self.evaluate(OVERFLOW)
        clipped = self.evaluate(CLIPPED)
        complaints, requests = [], []
        for event in self.events:
            given = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                complaints.append(str(given["exceptionDetails"].get("text")))
            elif event.get("method") == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
                complaints.append(str(given["args"]))
            elif event.get("method") == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
                complaints.append(given["entry"]["text"])
            elif event.get("method") == "Network.requestWillBeSent":
                requests.append(given["request"]["url"])
        asked = [url for url in requests if not url.startswith("data:") and url != page.absolute().as_uri()]
        return Seen(overflow["scroll"], overflow["out"], clipped, complaints, asked)

    def picture(self, target: Path) -> None:
        """Write a PNG of the whole page as it is shown."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        target.write_bytes(base64.b64decode(found["data"]))
