"""The report in a real browser: it is laid out, nothing overflows, both colour schemes differ."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from report_factory import rich_family, tried_of, write_files

from tierwise.compression.report.write import write_report
from tierwise.runtime.profile import family_profiles

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt install chromium)"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def report(wide_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("browser")
    family = rich_family(room / "family", write_files(wide_gguf, room))
    return write_report(family, tried=tried_of(family), profiles=family_profiles(family))


def browse(page: Path, folder: Path, *options: str) -> str:
    """Runs the browser without a window; what it prints."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-dev-shm-usage"]  # containers have little of it
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", *options]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


def pixels(path: Path) -> tuple[int, int, bytes]:
    """Width, height and the bytes of an RGB(A) PNG's rows, filters undone as far as needed."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    body, at = b"", 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            body += data[at + 8 : at + 8 + size]
        at += 12 + size
    return width, height, zlib.decompress(body)


def test_the_browser_reads_the_page_as_it_was_written(report: Path, tmp_path: Path) -> None:
    dom = browse(report, tmp_path, "--dump-dom")
    assert dom.count("<svg") == report.read_text(encoding="utf-8").count("<svg")
    assert dom.count("<section") == 5
    assert re.search(r"<h1>SmolLM2-135M-Instruct</h1>", dom)


def test_nothing_is_wider_than_a_phone(report: Path, tmp_path: Path) -> None:
    """A script of ours, in a copy without the policy, asks the browser how wide things are."""
    html = report.read_text(encoding="utf-8")
    html = re.sub(r"<meta http-equiv[^>]*>", "", html)
    probe = (
        "<script>onload=()=>{document.title=[innerWidth,document.documentElement.scrollWidth,"
        "[...document.querySelectorAll('.plot text')].filter(t=>t.getBBox().width==0).length]"
        ".join()}</script></body>"
    )
    page = tmp_path / "probe.html"
    page.write_text(html.replace("</body>", probe), encoding="utf-8")
    for size in ("1200,900", "500,900"):
        dom = browse(page, tmp_path, f"--window-size={size}", "--dump-dom")
        found = re.search(r"<title>(\d+),(\d+),(\d+)</title>", dom)
        assert found is not None
        inner, wide, empty = map(int, found.groups())
        assert wide <= inner
        assert empty == 0


def test_names_in_plots_do_not_overlap(report: Path, tmp_path: Path) -> None:
    """With the browser's own measures of its own fonts."""
    html = re.sub(r"<meta http-equiv[^>]*>", "", report.read_text(encoding="utf-8"))
    probe = """<script>onload = () => {
      let bad = [];
      for (const svg of document.querySelectorAll("svg.plot")) {
        const names = [...svg.querySelectorAll(".name, .note")];
        const boxes = names.map(t => [t.textContent, t.getBBox()]);
        boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
          const dx = Math.min(p.x + p.width, q.x + q.width) - Math.max(p.x, q.x);
          const dy = Math.min(p.y + p.height, q.y + q.height) - Math.max(p.y, q.y);
          if (dx > 1 && dy > 4) bad.push(a + " over " + b);
        }));
      }
      document.title = "overlaps: " + bad.join("; ");
    }</script></body>"""
    page = tmp_path / "probe.html"
    page.write_text(html.replace("</body>", probe), encoding="utf-8")
    dom = browse(page, tmp_path, "--window-size=1200,900", "--dump-dom")
    assert "<title>overlaps: </title>" in dom


def test_both_colour_schemes_are_painted(report: Path, tmp_path: Path) -> None:
    shots = []
    for scheme in ("0", "1"):  # dark, light
        shot = tmp_path / f"{scheme}.png"
        scheme_option = f"--blink-settings=preferredColorScheme={scheme}"
        browse(report, tmp_path, f"--screenshot={shot}", "--window-size=800,600", scheme_option)
        width, height, rows = pixels(shot)
        assert (width, height) == (800, 600)
        assert len(set(rows)) > 20  # more than one colour
        shots.append(rows[1:4])  # the first pixel: the page's colour
    dark, light = shots
    assert max(dark) < 60 < 200 < min(light)
