"""The page in a headless Chromium, one server for all tests."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

pytestmark = pytest.mark.browser

TIMEOUT = 60_000  # ms; the machine may be busy with something else
expect.set_options(timeout=TIMEOUT)


@pytest.fixture(scope="module")
def chromium():
    """A browser, if there is one."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        executable = found or playwright.chromium.executable_path
        if not Path(executable).is_file():
            pytest.skip("there is no Chromium")
        with playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture(scope="module")
def address(chromium, run, detector, tmp_path_factory):
    """The URL of a page that is served until the end of the tests, and must leave nothing behind then."""
    folder = tmp_path_factory.mktemp("temporary")
    env = {**os.environ, "TMPDIR": str(folder)}
    command = ["-m", "patnet", "demo", run, "--detector", detector, "--max-mb", "1"]
    process = subprocess.Popen([sys.executable, *map(str, command)], env=env, stderr=subprocess.PIPE, text=True)
    said = ""
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/", said)):
        line = process.stderr.readline()
        assert line, said
        said += line
    assert list(folder.glob("patnet-demo-*"))
    yield found[0]
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 0, rest
    assert "Ended. No image was kept." in rest
    assert "Traceback" not in said + rest
    assert not list(folder.glob("patnet-demo-*"))


@pytest.fixture
def files(tmp_path):
    """Files to drop, by name."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "good.png")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "huge.png").write_bytes(bytes(2_000_000))
    return tmp_path


@pytest.fixture
def opened(chromium, address):
    """Opens the page in a window of a width; at the end, no request may have left this machine."""
    contexts, requests = [], []

    def make(width=1200):
        context = chromium.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        context.on("request", lambda request: requests.append(request.url))
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        response = page.goto(address)
        assert "default-src 'self'" in response.headers["content-security-policy"]
        page.wait_for_selector("#drop input[type=file]", state="attached")
        return page

    yield make
    for context in contexts:
        context.close()
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def drop(page, file, zone="#drop"):
    page.set_input_files(f"{zone} input[type=file]", file)


def test_an_image_is_classified_and_a_position_shows_its_attention(opened, files):
    page = opened()
    drop(page, files / "good.png")
    expect(page.locator("#message")).to_contain_text("The network took")
    expect(page.locator("#classes")).to_contain_text("a [bracketed] <b>name</b>")
    expect(page.locator("#gates img")).to_have_count(4)
    expect(page.locator("#attended")).to_contain_text("of 2x2")
    drawing = page.locator("#attention img")
    drawing.click(position={"x": 8, "y": 8})
    expect(page.locator("#attended")).to_contain_text("Row 0, column 0 of 2x2")
    box = drawing.bounding_box()
    drawing.click(position={"x": box["width"] / 2 + 60, "y": box["height"] - 8})
    expect(page.locator("#attended")).to_contain_text("Row 1, column 1 of 2x2")
    page.get_by_label("128 px").check()
    expect(page.locator("#attended")).to_contain_text("of 4x4")
    expect(page.locator("#gates img")).to_have_count(4)
    page.locator("#draw").click()
    expect(page.locator("#sheet img")).to_be_visible()


def test_the_page_continues_after_a_bad_file(opened, files):
    page = opened()
    for file, refused in (("bad.png", 1), ("one.png", 1), ("bad.png", 2), ("good.png", 2)):
        drop(page, files / file)
        expect(page.get_by_text("bad.png: the file is not an image")).to_have_count(refused)
    expect(page.locator("#message")).to_contain_text("The network took")
    expect(page.locator("#attention img")).to_be_visible()
    drop(page, files / "huge.png")
    expect(page.get_by_text("exceed")).to_be_visible()
    page.locator("#examples button").first.click()
    expect(page.locator("#message")).to_contain_text("The network took")
    assert "Traceback" not in page.inner_text("body")


def test_the_page_fits_a_phone_and_the_detector_draws_what_it_finds(opened, files):
    page = opened(width=390)
    width = "document.scrollingElement.scrollWidth"
    drop(page, files / "good.png")
    expect(page.locator("#attended")).to_contain_text("Row")
    assert page.evaluate(width) <= 390
    page.get_by_role("tab", name="Detector").click()
    expect(page.locator("#detector-drop")).to_be_visible()
    drop(page, files / "bad.png", "#detector-drop")
    expect(page.get_by_text("bad.png: the file is not an image")).to_be_visible()
    drop(page, files / "good.png", "#detector-drop")
    expect(page.locator("#detector-message")).to_contain_text("No score above 0.5")
    expect(page.locator("#found img")).to_be_visible()
    page.locator("#score input[type=range]").fill("0.1")
    expect(page.locator("#detector-message")).not_to_contain_text("0.5")
    assert page.evaluate(width) <= 390
