"""Open the page of `patnet demo` in Chromium: measure the time to an answer, and take screenshots of the page.

Start `patnet demo` first, then `python demo/browser.py http://127.0.0.1:7860/ image.jpg --side 256 --out screenshots`.
Needs playwright, and a Chromium. docs/images has demo-page.png and demo-phone.png.
"""

import argparse
import io
import shutil
import statistics
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from patnet.files import atomic_write

REPEATS = 9
LOADED = 2000  # ms after which a page is ready
DRAWN = 8000  # ms after which everything is drawn, also on a busy machine


def measure(page: Page, image: Path) -> list[float]:
    """Seconds from the drop of an image to its classes, each on a new page."""
    seconds = []
    for _ in range(REPEATS):
        page.reload()
        page.wait_for_selector("#drop input[type=file]", state="attached")
        page.wait_for_timeout(LOADED)
        start = time.perf_counter()
        page.set_input_files("#drop input[type=file]", image)
        page.locator("#message", has_text="The network took").wait_for()
        page.locator("#classes", has_text="%").wait_for()
        seconds.append(time.perf_counter() - start)
    return seconds


def save_screenshot(page: Page, width: int, file: Path) -> None:
    """Write a screenshot of the complete page, of at most four times its width, with 256 colours."""
    page.set_viewport_size({"width": width, "height": 860})
    page.locator("#attended", has_text="attends most").wait_for()
    page.wait_for_timeout(DRAWN)
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shot = shot.crop((0, 0, shot.width, min(shot.height, 4 * shot.width))).quantize(256, dither=Image.Dither.NONE)
    with atomic_write(file) as temporary:
        shot.save(temporary, optimize=True)


def main() -> None:
    """Measure, and write screenshots with --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("image", type=Path)
    parser.add_argument("--side", type=int, help="Input size in px of the screenshots.")
    parser.add_argument("--out", type=Path, help="Folder for demo-page.png and demo-phone.png.")
    args = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1120, "height": 860})
        page.set_default_timeout(60_000)
        page.goto(args.address)
        seconds = measure(page, args.image)
        print(
            f"from drop to answer {statistics.median(seconds):.2f} s, the median of {REPEATS} "
            f"({min(seconds):.2f} to {max(seconds):.2f} s)"
        )
        if args.out and args.side:
            page.get_by_label(f"{args.side} px").check()
        for name, width in (("demo-page", 1120), ("demo-phone", 390)) if args.out else ():
            save_screenshot(page, width, args.out / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
