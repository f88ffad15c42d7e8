"""Pictures of pages in `docs/assets`: a test renders each of them, and writes it where `UPDATE_GALLERY` is set."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Page

UPDATE = bool(os.environ.get("UPDATE_GALLERY"))
"""Whether the extracts and the pictures of the documentation are written, and not compared."""
ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
SIZE = (1200, 750)
"""Width and height in pixels."""
LARGEST = 200_000
"""Bytes of a picture."""
HIDE_MISSING = "document.querySelectorAll('img').forEach((img) => { img.hidden = !img.naturalWidth; })"
"""The logos of blocks come from the internet, which tests don't use."""
SCHEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")


def check_pictures(page: Page, name: str) -> None:
    """Check the light and the dark picture of what a page shows, or write them.

    Args:
        page: The page, at the place that the pictures show.
        name: What the names of the two files start with.
    """
    before = page.viewport_size
    page.set_viewport_size({"width": SIZE[0], "height": SIZE[1]})
    page.evaluate(HIDE_MISSING)
    for scheme in SCHEMES:
        file = ASSETS / f"{name}-{scheme}.png"
        if UPDATE:
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(500)  # colours change gradually
            page.screenshot(path=file, animations="disabled")
        assert png_size(file) == SIZE, file.name
        assert file.stat().st_size < LARGEST, file.name
    page.emulate_media(color_scheme="light")
    if before:
        page.set_viewport_size(before)


def png_size(file: Path) -> tuple[int, int]:
    """Return the width and the height of a PNG file, as its header has them."""
    head = file.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n"), file.name
    width, height = struct.unpack(">II", head[16:])
    return width, height
