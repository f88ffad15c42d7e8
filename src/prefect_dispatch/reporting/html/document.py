"""The HTML of a report's page: texts truncated, redacted and escaped, and a document that loads and runs nothing else.

All data is JSON in inert script elements, and a content security policy allows no scripts but those written here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import secrets
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from prefect_dispatch.security.redaction import redactor
from prefect_dispatch.serialization.json_text import iter_json_chunks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import JsonValue

LENGTHS = (4_000, 2_000, 1_000, 500, 200)
"""Limits in characters for one text of an item; the first one with which all texts fit in `MAX_TOTAL` is used."""
MAX_TOTAL = 16_000_000
"""Most characters of the texts of all items together."""

_WINDOW = 8_000
"""Characters after the end of a truncated text that are searched for secrets, too, so that no part of one is shown."""
_REMEMBERED = 1024
"""Texts whose redaction is remembered: names, labels and the like recur in many items."""
_ACTIVE = re.compile("[<>&\u2028\u2029]")


def to_script_json(data: object) -> str:
    r"""Return data as JSON that is safe in a script element: characters with a meaning in HTML are escaped.

    Example:
        >>> to_script_json({"text": "</script><!--"})
        '{"text":"\\u003c/script\\u003e\\u003c!--"}'
    """
    text = to_json(data, inf_nan_mode="null").decode()
    return _ACTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def to_readable_text(value: JsonValue) -> str:
    """Return a value as readable text: a string as it is, any other value as indented JSON."""
    return value if isinstance(value, str) else to_json(value, indent=2).decode()


def fit_length(sizes: Iterable[int], most: int = MAX_TOTAL) -> int:
    """Return the most characters of each of many texts.

    Args:
        sizes: The lengths of the texts.
        most: The most characters of all texts together.

    Returns:
        The largest of `LENGTHS` with which they fit, or the smallest if they don't fit with any.

    Example:
        >>> fit_length([100] * 10), fit_length([3_000] * 10_000)
        (4000, 1000)
    """
    every = list(sizes)
    return next((length for length in LENGTHS if sum(min(size, length) for size in every) <= most), LENGTHS[-1])


class TextPreviews:
    """Truncates and redacts texts."""

    def __init__(self) -> None:
        """Read the secrets to redact from the environment as it is now."""
        self._hide = lru_cache(_REMEMBERED)(redactor())

    def preview(self, text: str, length: int) -> list[str | int]:
        """Return the beginning of a text, and the number of characters that were cut off, if any.

        Example:
            >>> TextPreviews().preview("0123456789", 4)
            ['0123', 6]
            >>> TextPreviews().preview("key: sk-proj-0123456789", 4000)
            ['key: ***']
        """
        return self._truncate(text, len(text), length)

    def preview_value(self, value: JsonValue, length: int) -> list[str | int]:
        r"""Return the beginning of a value as readable text, and the number of characters that were cut off, if any.

        The value is serialized in chunks, as its whole text may be large.

        Example:
            >>> TextPreviews().preview_value(["one", "two"], 8)
            ['[\n  "one', 12]
        """
        if isinstance(value, str):
            return self.preview(value, length)
        text, size = "", 0
        for piece in iter_json_chunks(value, indent=2, odd="constants"):
            part = piece.decode()
            text += part[: max(0, length + _WINDOW - size)]
            size += len(part)
        return self._truncate(text, size, length)

    def _truncate(self, text: str, size: int, length: int) -> list[str | int]:
        """Return the beginning of a text, redacted, and the number of characters that were cut off, if any.

        Args:
            text: The text, or so much of it that all secrets in its beginning are whole.
            size: The length of the whole text.
            length: Most characters of the result.
        """
        clean = self._hide(text[: length + _WINDOW])
        return [clean[:length], size - length] if size > length else [clean]

    def preview_line(self, text: str, length: int) -> str:
        r"""Return the beginning of a text as one line.

        Example:
            >>> TextPreviews().preview_line("one\ntwo three", 7)
            'one two…'
        """
        flat = " ".join(str(self.preview(text, length)[0]).split())
        return flat if len(text) <= length else f"{flat}…"


ASSETS_FOLDER = Path(__file__).parent
"""The folder with the template, the style sheet and the scripts."""


SCRIPTS = (
    *("dom", "export", "charts", "grids", "answers", "ledger", "heat", "timeline", "findings", "item", "summary"),
    *("views", "compare", "main"),
)
"""The page's own scripts, in the order in which they are concatenated."""


GENERATOR = "prefect-dispatch report page"
"""Content of the page's `generator` element, by which a later run recognizes a page that it may overwrite."""


_ELEMENT_END = re.compile(r"<(?=/script|!--)", re.IGNORECASE)


_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)


_SLOT = re.compile(r"%%([A-Z]+)%%")


class MissingLibraryError(Exception):
    """A JavaScript library that the build downloads is missing; the message says how to get it."""


@dataclass(frozen=True)
class PageAssets:
    """The static parts of a page.

    Attributes:
        template: The HTML template.
        style: The style sheet.
        page_script: The page's own script.
        libraries: The scripts of the libraries.
        licences: Name, version, home and licence text of each library.
    """

    template: str
    style: str
    page_script: str
    libraries: tuple[str, ...]
    licences: tuple[dict[str, str], ...]


def load_assets(folder: Path = ASSETS_FOLDER) -> PageAssets:
    """Load the static parts of a page.

    Args:
        folder: The folder with their files.

    Raises:
        MissingLibraryError: If a library is missing.
    """
    vendored: list[dict[str, Any]] = json.loads((folder / "vendored.json").read_bytes())
    scripts: list[str] = []
    licences: list[dict[str, str]] = []
    for package in vendored:
        script, licence = (_read_library(folder, file["name"], package) for file in package["files"])
        scripts.append(_escape_script(script))
        licences.append({name: package[name] for name in ("name", "version", "home")} | {"text": licence})
    own = "\n".join((folder / "script" / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    return PageAssets(
        template=(folder / "template.html").read_text("utf-8"),
        style=(folder / "page.css").read_text("utf-8"),
        page_script=_escape_script(f'(() => {{\n"use strict";\n{own}}})();'),
        libraries=tuple(scripts),
        licences=tuple(licences),
    )


def render_document(assets: PageAssets, title: str, data: Iterator[tuple[str, object]]) -> Iterator[str]:
    """Yield the HTML of a page in chunks.

    Args:
        assets: The static parts of the page.
        title: The title of its window.
        data: The id of each element with data, and the data; the first precedes the scripts, which read it when they
            start.
    """
    nonce = secrets.token_urlsafe(16)
    scripts = (assets.page_script, *assets.libraries)
    # The policy: only these scripts run, by their digests, and nothing is loaded.
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    slots = {
        "POLICY": f"default-src 'none'; script-src {allowed}; style-src 'nonce-{nonce}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        "TITLE": html.escape(title),
        "GENERATOR": GENERATOR,
        "NONCE": nonce,
        "STYLE": assets.style,
        "FIRST": _data_element(*next(data)),
        "SCRIPTS": "".join(f"<script>{text}</script>\n" for text in scripts),
    }
    # One pass over the template, so that slots in what is inserted are not replaced.
    yield _SLOT.sub(lambda slot: slots[slot[1]], assets.template)
    yield from (_data_element(*each) for each in data)
    yield "</body>\n</html>\n"


def _data_element(name: str, data: object) -> str:
    return f'<script type="application/json" id="{name}">{to_script_json(data)}</script>\n'


def _read_library(folder: Path, name: str, package: dict[str, Any]) -> str:
    try:
        return (folder / "vendor" / name).read_text("utf-8")
    except OSError:
        raise MissingLibraryError(
            f"{package['name']} {package['version']} is missing, which the build downloads: install prefect-dispatch "
            "again (in a checkout: `uv sync --reinstall-package prefect-dispatch`) where npm's registry can be reached."
        ) from None


def _escape_script(script: str) -> str:
    """Return a script for use in a script element, which it can't end, without the URL of its source map."""
    return _ELEMENT_END.sub(r"<\\", _SOURCE_MAP.sub("", script))


def missing_library(folder: Path = ASSETS_FOLDER) -> str:
    """Return why no page can be built with this installation, in a sentence; empty if it can."""
    try:
        load_assets(folder)
    except MissingLibraryError as error:
        return str(error)
    return ""
