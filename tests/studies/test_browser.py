"""The report in a real browser: every image loads, on a desk and on a phone, and nothing is asked of the network."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from synthetic import synthetic_ages, synthetic_comparison

from spatial_ensemble.studies.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]

ASK = """
<script>addEventListener("load", () => {
  const page = document.documentElement;
  document.body.append(Object.assign(document.createElement("pre"), {id: "answer", textContent: JSON.stringify({
    images: [...document.images].map(image => image.complete && image.naturalWidth),
    right: Math.max(...[...document.querySelectorAll("body *")].map(part => part.getBoundingClientRect().right)),
    width: page.clientWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    rows: getComputedStyle(document.querySelector("tr:nth-child(2)")).display,
    asked: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
  })}));
})</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    write_report(synthetic_comparison(), synthetic_ages(), out)
    asking = out / "asking.html"
    asking.write_text(
        (out / "report.html").read_text(encoding="utf-8").replace("</body>", ASK + "</body>"), encoding="utf-8"
    )
    return out


def chromium(profile: Path, *arguments: str) -> str:
    flags = (
        (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --hide-scrollbars --host-resolver-rules=MAP*~NOTFOUND"
        )
        .replace("MAP*", "MAP *")
        .split(" --")
    )
    command = [str(BROWSER), flags[0], *("--" + flag for flag in flags[1:]), f"--user-data-dir={profile}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_it_renders(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    theme = ["--force-dark-mode"] if dark else []
    asking = (page / "asking.html").as_uri()
    dom = chromium(tmp_path, *theme, f"--window-size={width},1000", "--virtual-time-budget=10000", "--dump-dom", asking)
    found = re.search(r'<pre id="answer">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    answer = json.loads(html.unescape(found[1]))
    assert len(answer["images"]) == 3 and all(answer["images"])
    assert answer["asked"] == []
    assert answer["right"] <= answer["width"]  # nothing runs off the side
    assert answer["rows"] == ("block" if width <= 600 else "table-row")
    assert answer["ground"] == ("rgb(22, 25, 29)" if dark else "rgb(255, 255, 255)")


def test_a_picture_of_it_holds_every_colour(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "report.png"
    report = (page / "report.html").as_uri()
    chromium(tmp_path / "profile", "--window-size=1000,2400", f"--screenshot={shot}", report)
    seen = {colour for _, colour in Image.open(shot).convert("RGB").getcolors(maxcolors=1 << 24)}
    for colour in ("#5c6670", "#0072b2", "#008f68", "#d55e00", "#7b5fb2"):
        assert tuple(bytes.fromhex(colour[1:])) in seen
