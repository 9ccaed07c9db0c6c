"""Looks at the built site in a browser, as a program: ``browse_site.py build/docs build/browser``.

Contract
--------
- Every page, opened from files at the width of a desktop and of a telephone, asks for nothing but
  files, reports no error, and is not wider than the window: wide tables and code scroll by
  themselves.  Code of 80 columns fits a desktop.
- A word that is typed into the search box is answered, without a server, and the answer leads to
  its page.
- Screenshots lie in the second folder, for an eye to judge.

It needs Chromium (Debian: chromium) and Playwright, which drives it.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from check_site import SEARCHES

DESKTOP = {"width": 1280, "height": 900}
TELEPHONE = {"width": 390, "height": 844}

# For a container: run as root, with little shared memory.
OPTIONS = ["--no-sandbox", "--disable-dev-shm-usage"]
PATIENCE = 120_000  # milliseconds; a machine may be busy

# Page and anchor, window, colours.
SHOTS = [
    ("README", DESKTOP, "light"),
    ("docs/quick_start", DESKTOP, "light"),
    ("docs/performance#from-memory", DESKTOP, "light"),
    ("docs/api/regularizers", DESKTOP, "dark"),
    ("docs/architecture", DESKTOP, "dark"),
    ("docs/performance#from-memory", TELEPHONE, "light"),
    ("README", TELEPHONE, "dark"),
]

_WIDER = "() => document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
_CODE_COLUMNS = """() => {
  const box = document.querySelector("article pre");
  if (!box) return null;
  const style = getComputedStyle(box);
  const probe = document.createElement("span");
  probe.textContent = "m".repeat(80);
  box.appendChild(probe);
  const width = probe.getBoundingClientRect().width;
  probe.remove();
  const room = box.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  return 80 * room / width;
}"""


class Browsing:
    """A browser on a site, and the faults that were seen in it."""

    def __init__(self, site: Path, browser: Any) -> None:
        self.site = site
        self.browser = browser
        self.faults: list[str] = []
        self.requests = 0

    def window(self, size: dict[str, int], colours: str = "light") -> Any:
        """Return a new window that has no network and whose requests and errors are watched."""
        context = self.browser.new_context(
            viewport=size, color_scheme=colours, offline=True, reduced_motion="reduce"
        )
        window = context.new_page()
        window.set_default_timeout(PATIENCE)
        window.on("request", lambda request: self._asked(window, request.url))
        window.on("pageerror", lambda error: self.faults.append(f"{window.url}: {error}"))
        return window

    def _asked(self, window: Any, url: str) -> None:
        self.requests += 1
        if not url.startswith(("file:", "data:")):
            self.faults.append(f"{window.url} asks for {url}")

    def address(self, name: str) -> str:
        """Return the address of a page, "page" or "page#anchor"."""
        page, mark, anchor = name.partition("#")
        return (self.site / f"{page}.html").as_uri() + mark + anchor

    def look_at_all(self, size: dict[str, int]) -> int:
        """Open every page; return how many there are."""
        window = self.window(size)
        names = sorted(
            str(path.relative_to(self.site).with_suffix(""))
            for path in self.site.rglob("*.html")
            if path.name != "index.html"
        )
        if not names:
            self.faults.append(f"{self.site} has no pages")
        for name in names:
            window.goto(self.address(name))
            wider = window.evaluate(_WIDER)
            if wider > 0:
                self.faults.append(f"{name} is {wider} wider than a window of {size['width']}")
            columns = window.evaluate(_CODE_COLUMNS) if size is DESKTOP else None
            if columns is not None and columns < 80:
                self.faults.append(f"{name} has room for {columns:.1f} columns of code")
        window.context.close()
        return len(names)

    def search(self, word: str, wanted: str) -> None:
        """Type a word into the search box of the first page, and follow the answer."""
        window = self.window(DESKTOP)
        window.goto(self.address("README"))
        window.locator("input[name=q]").first.fill(word)
        window.keyboard.press("Enter")
        answer = window.locator(f'#search-results a[href*="{wanted}.html"]').first
        try:
            answer.wait_for()
            answer.click()
            window.wait_for_url(f"**/{wanted}.html**")
        except Exception as error:
            self.faults.append(f"a search for {word!r} does not lead to {wanted}: {error}")
        window.context.close()

    def take(self, name: str, size: dict[str, int], colours: str, to: Path) -> None:
        """Take a picture of what a window shows of a page."""
        window = self.window(size, colours)
        window.goto(self.address(name))
        _, mark, anchor = name.partition("#")
        if mark:  # the browser has not always scrolled when it says that the page is loaded
            window.locator(f"[id='{anchor}']").first.evaluate("place => place.scrollIntoView()")
        picture = f"{re.sub('[/#]', '-', name)}-{size['width']}-{colours}.png"
        window.screenshot(path=to / picture)
        window.context.close()


def main(site: Path, pictures: Path) -> int:
    """Look at a site; return the exit status."""
    from playwright.sync_api import sync_playwright  # pytest reads this file, and has none

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("there is no chromium in PATH")
        return 1
    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        browsing = Browsing(site, browser)
        count = browsing.look_at_all(DESKTOP)
        browsing.look_at_all(TELEPHONE)
        for word, _, wanted in SEARCHES:
            browsing.search(word, wanted)
        for name, size, colours in SHOTS:
            browsing.take(name, size, colours, pictures)
        version = browser.version
        browser.close()
    print(*browsing.faults, sep="\n", end="\n" if browsing.faults else "")
    print(
        f"Chromium {version}: {count} pages at two widths, {len(SEARCHES)} searches, "
        f"{len(SHOTS)} screenshots, {browsing.requests} files asked for, "
        f"{len(browsing.faults)} faults"
    )
    return 1 if browsing.faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()))
