"""Take pictures of pages: on a desk and on a phone, in light and dark, and on paper (A4).

    python -m bench.screenshots <folder for the pictures> <page.html> [<page.html> …]

It needs playwright (env/requirements-dev.txt) and Debian's chromium.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

LOOKS = {
    "1280-light": (1280, "screen", "light"),
    "1280-dark": (1280, "screen", "dark"),
    "390-light": (390, "screen", "light"),
    "390-dark": (390, "screen", "dark"),
    "paper": (718, "print", "light"),
}
TALLEST = 8000


def main(folder: Path, pages: list[Path]) -> None:
    """Write `<page>-<look>.png` into `folder`, the whole length of each page."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no chromium: apt install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as tool:
        arguments = [] if os.geteuid() else ["--no-sandbox"]
        browser = tool.chromium.launch(executable_path=chromium, args=arguments)
        for page in pages:
            for look, (width, media, scheme) in LOOKS.items():
                tab = browser.new_page(viewport={"width": width, "height": 900})
                tab.emulate_media(media=media, color_scheme=scheme)
                tab.goto(page.resolve().as_uri())
                to = folder / f"{page.parent.name}-{page.stem}-{look}.png"
                height = min(tab.evaluate("document.documentElement.scrollHeight"), TALLEST)
                clip = {"x": 0, "y": 0, "width": width, "height": height}
                tab.screenshot(path=to, full_page=True, clip=clip)
                tab.close()
                print(to)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
