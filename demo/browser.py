"""Open the page of `patnet demo` in Chromium: how long answers take, and pictures of the page.

Run beside it: `patnet demo`, then `python demo/browser.py http://127.0.0.1:7860/ photo.jpg --side 256 --out shots`.
Needs playwright, and a Chromium. docs/images holds demo-page.png and demo-phone.png.
"""

import argparse
import io
import shutil
import statistics
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from patnet.files import save_small

TIMES = 9
SETTLED = 2000  # ms after which a page has come to rest
DRAWN = 8000  # ms after which all is drawn, on a busy machine too


def measure(page: Page, picture: Path) -> list[float]:
    """Seconds from a picture dropped to its classes shown, each time on a fresh page."""
    seconds = []
    for _ in range(TIMES):
        page.reload()
        page.wait_for_selector("#drop input[type=file]", state="attached")
        page.wait_for_timeout(SETTLED)
        start = time.perf_counter()
        page.set_input_files("#drop input[type=file]", picture)
        page.locator("#message", has_text="The network took").wait_for()
        page.locator("#classes", has_text="%").wait_for()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure, and write pictures of the page where asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--side", type=int, help="Choose this size, px, for the pictures of the page.")
    parser.add_argument("--out", type=Path, help="Folder for demo-page.png and demo-phone.png.")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1120, "height": 860})
        page.set_default_timeout(60_000)
        page.goto(args.address)
        seconds = measure(page, args.picture)
        print(
            f"from drop to answer {statistics.median(seconds):.2f} s, the median of {TIMES} "
            f"({min(seconds):.2f} to {max(seconds):.2f} s)"
        )
        for name, width in (("demo-page", 1120), ("demo-phone", 390)) if args.out else ():
            page.set_viewport_size({"width": width, "height": 860})
            if args.side:
                page.get_by_label(f"{args.side} px").check()
            page.locator("#attended", has_text="attends most").wait_for()
            page.wait_for_timeout(DRAWN)
            shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
            shot = shot.crop((0, 0, shot.width, min(shot.height, 4 * shot.width)))  # a phone's page is a long one
            save_small(shot, args.out / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
