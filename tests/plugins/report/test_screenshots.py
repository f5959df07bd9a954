"""The page in a browser, at the widths of a phone, a tablet and a desktop."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from hooktrain_report import write_report

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian's package chromium)"),
]
HEIGHT = 4000
CURVE = (0x1F, 0x6F, 0xEB)
"""The colour of the first run."""


def browse(folder, page, *words):
    """Run Chromium, which may reach this machine alone."""
    subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            f"--user-data-dir={folder / 'profile'}",
            *words,
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )


@pytest.fixture
def pages(run_chat, chat_recipe, tmp_path):
    """A page of one run, and one of two."""
    for name, rate in (("first", 1e-2), ("second", 3e-2)):
        run_chat(
            run_dir=str(tmp_path / name),
            optimizer={"lr": rate},
            train_iters=40,
            eval_interval=10,
            samples={"prompts": ["What is 2 + 2?"]},
        )
    folders = [tmp_path / "first", tmp_path / "second"]
    return [write_report(folders[:1]), write_report(folders, tmp_path / "both.html")]


@pytest.mark.parametrize("width", [390, 820, 1400])
def test_nothing_overflows_and_curves_are_drawn(pages, tmp_path, width):
    from PIL import Image

    for page in pages:
        shot = tmp_path / f"{page.stem}-{width}.png"
        browse(tmp_path, page, f"--window-size={width},{HEIGHT}", f"--screenshot={shot}")
        image = Image.open(shot).convert("RGB")
        assert image.width == width
        margin = image.crop((width - 8, 0, width, HEIGHT))
        assert margin.getcolors() == [(8 * HEIGHT, (255, 255, 255))], f"{shot}: something reaches the right edge"
        drawn = sum(count for count, colour in image.getcolors(2**24) if colour == CURVE)
        assert drawn > 1000, f"{shot}: {drawn} pixels of curves"


def test_in_print_all_parts_are_open(pages, tmp_path):
    """Chromium writes a page for each sheet; with all parts closed there are fewer."""
    counts = []
    for name, rule in (("open", "details::details-content"), ("closed", "nothing")):
        page = tmp_path / f"{name}.html"
        page.write_text(pages[0].read_text().replace("details::details-content", rule))
        browse(tmp_path, page, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / name}.pdf")
        counts.append(len(re.findall(rb"/Type\s*/Page\b", (tmp_path / f"{name}.pdf").read_bytes())))
    assert counts[0] > counts[1] > 0


class Counts(BaseHTTPRequestHandler):
    """A server that notes what it is asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *given):
        pass


@pytest.fixture
def address():
    server = HTTPServer(("127.0.0.1", 0), Counts)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_page_loads_nothing_whatever_a_run_has_said(run_tiny, tmp_path, address):
    """Not as text of the run; and not even where it got into the page, which the control shows to be a request."""
    run_tiny()
    image = f"<img src={address}/%s.png>"
    sample = {"step": 0, "prompt": image % "prompt", "answer": image % "answer"}
    (tmp_path / "run" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    page = write_report([tmp_path / "run"])
    made = page.read_text()
    assert address in made
    injected = made.replace("<h1>", (image % "injected") + "<h1>")
    for name, text in (
        ("page", made),
        ("injected", injected),
        ("control", re.sub(r"<meta http-equiv[^>]*>", "", injected)),
    ):
        (tmp_path / f"{name}.html").write_text(text)
        browse(tmp_path, tmp_path / f"{name}.html", f"--screenshot={tmp_path / name}.png")
        assert set(Counts.asked) == ({"/injected.png"} if name == "control" else set())
