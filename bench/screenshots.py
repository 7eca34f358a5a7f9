"""Take screenshots of pages: desktop and phone, light and dark, and A4 print.

    python -m bench.screenshots <output folder> <page.html> [<page.html> …]

Requires playwright (env/requirements-dev.txt) and Debian's chromium.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

VARIANTS = {
    "1280-light": (1280, "screen", "light"),
    "1280-dark": (1280, "screen", "dark"),
    "390-light": (390, "screen", "light"),
    "390-dark": (390, "screen", "dark"),
    "paper": (718, "print", "light"),
}
MAX_HEIGHT_PIXELS = 8000


def main(folder: Path, pages: list[Path]) -> None:
    """Write `<page>-<variant>.png` into `folder`, each a full-page screenshot."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed: apt install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        arguments = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        for page in pages:
            for variant, (width, media, scheme) in VARIANTS.items():
                tab = browser.new_page(viewport={"width": width, "height": 900})
                tab.emulate_media(media=media, color_scheme=scheme)
                tab.goto(page.resolve().as_uri())
                path = folder / f"{page.parent.name}-{page.stem}-{variant}.png"
                height = min(
                    tab.evaluate("document.documentElement.scrollHeight"), MAX_HEIGHT_PIXELS
                )
                clip = {"x": 0, "y": 0, "width": width, "height": height}
                tab.screenshot(path=path, full_page=True, clip=clip)
                tab.close()
                print(path)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
