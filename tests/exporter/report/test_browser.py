"""The page in headless Chromium: nothing on the console, nothing wider than the window, on a phone as on a desk."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from dexport.exporter.report.page import report_page
from tests.exporter.report.samples import full, pairs

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
NO_SCRIPT = "default-src 'none';"
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images], root = document.documentElement;
  const decoded = images.filter(image => image.complete && image.naturalWidth);
  parent.postMessage([root.scrollWidth, innerWidth, images.length, decoded.length].join(" "), "*");
})</script>"""
FRAME = """<html><script>addEventListener("message", event => { document.documentElement.dataset.probe = event.data; })</script>
<body><iframe src="page.html" width="WIDTH" height="2000" frameborder="0"></iframe></body></html>"""
"""Chromium's own windows are at least 500 pixels wide; a frame may be as narrow as a phone, and the page takes it for its window."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed (Debian: apt-get install chromium)")


@dataclass(frozen=True)
class Seen:
    """What the browser says: widths of document and window in pixels, pictures on the page and decoded, lines of the console."""

    document: int
    window: int
    pictures: int
    decoded: int
    console: list[str]


def _open(page: str, width: int, folder: Path) -> Seen:
    """Opens a page with a script that measures it; the page's own policy forbids scripts, and stays in force for all else."""
    assert page.count(NO_SCRIPT) <= 1
    open_to_probe = page.replace(NO_SCRIPT, f"{NO_SCRIPT} script-src 'unsafe-inline';").replace("</body>", PROBE + "</body>")
    (folder / "page.html").write_text(open_to_probe, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = [CHROMIUM, "--headless", "--no-sandbox", *quiet.split(), "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,2100", "--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=True)
    probe = re.search(r'data-probe="([\d ]+)"', done.stdout)
    assert probe is not None, f"the page did not load: {done.stderr[-2000:]}"
    return Seen(*map(int, probe[1].split()), console=[line for line in done.stderr.splitlines() if ":CONSOLE" in line])


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_its_window_and_logs_nothing(width: int, tmp_path: Path) -> None:
    data = dataclasses.replace(full(), pairs=full().pairs + pairs(1, 800, 900, levels=40))  # one of them is embedded as WebP
    seen = _open(report_page(data), width, tmp_path)
    assert seen.window == width and seen.document <= width
    assert seen.pictures == seen.decoded == 24
    assert seen.console == []


def test_a_page_that_is_too_wide_or_complains_would_be_noticed(tmp_path: Path) -> None:
    wide = '<body><div style="width: 500px">x</div><script>console.error("broken")</script></body>'
    seen = _open(f"<html>{wide}</html>", 375, tmp_path)
    assert seen.document >= 500 > seen.window
    assert len(seen.console) == 1 and "broken" in seen.console[0]
