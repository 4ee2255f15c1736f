"""`python -m benchmarks.screenshots`: every page in light and dark, on the embedded digits, into docs/screens/."""

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from engine.experiment.environment import PROJECT
from pages._shared import PAGES
from tests import browser

LARGEST = 60_000  # bytes of one picture


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots", description=__doc__)
    parser.add_argument("--output", type=Path, default=PROJECT / "docs" / "screens", metavar="FOLDER")
    parser.add_argument("--height", type=int, default=browser.LAPTOP["height"], help="of the window (default: 768)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    executable = browser.installed()
    if executable is None:
        parser.error(f"no browser on this machine (looked for {', '.join(browser.BROWSERS)})")
    with (
        tempfile.TemporaryDirectory() as folder,
        browser.serving(Path(folder)) as server,
        browser.chromium(executable) as chromium,
    ):
        page, _ = browser.new_page(chromium, size=browser.LAPTOP | {"height": options.height})
        for file, title in PAGES:
            page.goto(server.address + browser.place(file))
            browser.idle(page, timeout=60_000)
            for scheme in ("light", "dark"):
                browser.switch(page, scheme)
                path = options.output / f"{Path(file).stem}-{scheme}.webp"
                path.write_bytes(small(page.screenshot()))
                print(f"{title}, {scheme}: {path} ({path.stat().st_size / 1000:.0f} kB)", flush=True)


def small(png: bytes) -> bytes:
    """The picture as WebP, as good as `LARGEST` allows."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for quality in (90, 80, 65, 50, 35, 20):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= LARGEST:
            break
    return buffer.getvalue()


if __name__ == "__main__":
    main()
