"""The page in a real browser: every plot and picture shows, nothing sticks out, nothing is reported as an error."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_backbone.compare.report import write_run_pages
from resnet_backbone.data.images.read import read_image

BROWSERS = ("chromium", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--hide-scrollbars",
)
# Written into a copy of the page: at its start, to note errors from the first on, and at its end.
NOTE_ERRORS = """<script>
window.noted = [];
window.addEventListener("error", (event) => noted.push(String(event.message || event.target.outerHTML)), true);
console.error = (...words) => noted.push(words.join(" "));
</script>"""
MEASURE = """<script>
window.addEventListener("load", () => {
  const place = (element) => {
    const box = element.getBoundingClientRect();
    return [box.left + scrollX, box.top + scrollY, box.width, box.height];
  };
  parent.postMessage(JSON.stringify({
    images: [...document.images].map((image) => ({
      alt: image.alt, complete: image.complete, natural: [image.naturalWidth, image.naturalHeight], place: place(image),
    })),
    tables: [...document.querySelectorAll(".scroll")].map((one) => [one.ariaLabel, one.scrollWidth, one.clientWidth]),
    width: document.documentElement.scrollWidth,
    height: document.documentElement.scrollHeight,
    viewport: innerWidth,
    errors: noted,
  }), "*");
});
</script>"""
# A frame can be as narrow as a phone; a window of Chromium cannot.
FRAME = """<!doctype html>
<body style="margin: 0">
<script>
addEventListener("message", (event) => {
  const element = document.createElement("pre");
  element.id = "found";
  element.hidden = true;
  element.textContent = event.data;
  document.body.append(element);
});
</script>
<iframe src="measured.html" style="display: block; border: 0; width: %dpx; height: %dpx"></iframe>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no browser is installed; looked for {', '.join(BROWSERS)}")


@pytest.fixture(scope="module", params=["two runs", "one run"])
def page(request, pair, written, tmp_path_factory) -> Path:
    """The page with the script that measures it."""
    copy = tmp_path_factory.mktemp("page") / "measured.html"
    (source,) = [written.page] if request.param == "two runs" else write_run_pages(pair[0], read_image=read_image)
    copy.write_text(
        source.read_text().replace("<head>", f"<head>{NOTE_ERRORS}").replace("</body>", f"{MEASURE}</body>")
    )
    return copy


def run(browser: str, page: Path, width: int, height: int, *switches: str) -> str:
    frame = page.with_name("frame.html")
    frame.write_text(FRAME % (width, height))
    window = f"--window-size={max(width, 500)},{height}"
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [browser, *SWITCHES, profile, window, "--virtual-time-budget=20000", *switches, frame.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("width", [1280, 390])
def test_everything_shows(browser, page, comparison, tmp_path, width):
    dom = run(browser, page, width, 900, "--dump-dom")
    found = json.loads(html.unescape(re.search(r'<pre id="found"[^>]*>(.*?)</pre>', dom, re.S)[1]))
    assert found["errors"] == []
    assert found["viewport"] == width
    assert found["width"] <= width, "nothing sticks out to the right"
    for title, needed, there in found["tables"]:
        if title.startswith(("Average precision of", "AP of every class", "Mistakes by kind")):
            assert needed <= there, f"{title} shows its last column"
    assert len(found["images"]) >= (9 + 3 * len(comparison.gallery) if "Comparison on" in page.read_text() else 12)
    for image in found["images"]:
        assert image["complete"] and min(image["natural"]) > 50, image["alt"]
        left, _, shown_width, shown_height = image["place"]
        assert left >= 0 and left + shown_width <= width and shown_height > 50, image["alt"]
        assert shown_width / shown_height == pytest.approx(image["natural"][0] / image["natural"][1], rel=0.03)
    screenshot = tmp_path / "page.png"
    run(browser, page, width, found["height"], f"--screenshot={screenshot}")
    pixels = np.asarray(Image.open(screenshot).convert("L"), dtype=float)
    for image in found["images"]:
        left, top, shown_width, shown_height = (round(value) for value in image["place"])
        area = pixels[top : top + shown_height, left : left + shown_width]
        assert area.shape == (shown_height, shown_width), "it is on the screenshot"
        assert area.std() > 3 and len(np.unique(area)) > 10, f"blank: {image['alt']}"
