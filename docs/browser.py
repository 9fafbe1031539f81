"""Looks at every page of the built site in headless Chromium: `make docs-browser`.

    python docs/browser.py build/site build/screenshots

Fails on errors in the console, images that do not load, formulas that are not drawn and
pages that scroll sideways. It leaves screenshots of each page, wide and narrow, light
and dark.
"""

import functools
import http.server
import itertools
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")

# What scrolls or hides what does not fit inside itself may hold wide things.
FIND_FAULTS = r"""() => {
  const faults = [];
  const page = document.documentElement;
  const name = (x) => `<${x.tagName.toLowerCase()} class="${x.getAttribute('class')}">`;
  if (page.scrollWidth > innerWidth) {
    const isHeld = (x) => x.parentElement && (
      getComputedStyle(x.parentElement).overflowX !== 'visible' ||
      isHeld(x.parentElement));
    const wide = [...document.querySelectorAll('article *')].filter(
      (x) => x.getBoundingClientRect().right > innerWidth && !isHeld(x));
    faults.push(`is ${page.scrollWidth} pixels wide: ${wide.map(name)}`);
  }
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) {
      faults.push(`misses the image ${image.src}`);
    }
  }
  for (const formula of document.querySelectorAll('math')) {
    if (!formula.getBoundingClientRect().height || formula.querySelector('merror')) {
      faults.push(`does not draw ${formula.textContent}`);
    }
  }
  const texts = document.querySelectorAll(
    'article p, article li, article dd, article td, article math');
  for (const text of texts) {
    const rest = text.cloneNode(true);
    rest.querySelectorAll('pre, code').forEach((x) => x.remove());
    const found = rest.textContent.match(/\\[a-z]{2,}|:math:|\$\$/);
    if (found) faults.push(`shows ${found[0]} in ${rest.textContent.slice(0, 60)}`);
  }
  return faults;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def faults_of_page(
    browser: Browser, url: str, width: int, scheme: Any, screenshot: Path
) -> list:
    size: Any = {"width": width, "height": 900}
    page = browser.new_page(viewport=size, color_scheme=scheme)
    faults = []
    page.on("console", lambda m: m.type == "error" and faults.append(m.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda r: faults.append(f"cannot load {r.url}"))
    page.goto(url, wait_until="networkidle")
    faults += page.evaluate(FIND_FAULTS)
    page.screenshot(path=screenshot, full_page=True)
    page.close()
    return faults


def main() -> None:
    site, screenshots = map(Path, sys.argv[1:])
    screenshots.mkdir(parents=True, exist_ok=True)
    pages = [path.relative_to(site) for path in site.rglob("*.html")]
    # Beside the pages there are templates of the theme, in _static.
    names = sorted(str(path) for path in pages if not path.parts[0].startswith("_"))
    if not names:
        sys.exit(f"{site} has no pages: run `make docs`.")
    failed = False
    with served(site) as address, sync_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name in names:
            for width, scheme in itertools.product(WIDTHS, SCHEMES):
                stem = name.removesuffix(".html").replace("/", "-")
                screenshot = screenshots / f"{stem}-{width}-{scheme}.png"
                url = f"{address}/{name}"
                for fault in faults_of_page(browser, url, width, scheme, screenshot):
                    print(f"{name} at {width} pixels, {scheme}: {fault}")
                    failed = True
        browser.close()
    print(f"{len(names)} pages at {WIDTHS} pixels, {SCHEMES}: see {screenshots}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
