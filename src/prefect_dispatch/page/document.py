"""The page as one HTML file that asks nobody for anything.

A content security policy lets only the scripts run that stand in the file, by their digests, and forbids every
request. Data stand in script elements of their own as JSON; nothing of it is ever HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_dispatch.page.texts import embedded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FOLDER = Path(__file__).parent
SCRIPTS = ("dom", "charts", "grids", "heat", "timeline", "findings", "item", "summary", "views", "main")
"""The page's own scripts, in order; together they are one."""
MADE_BY = "prefect-dispatch report page"
"""What the file says of itself, so that the next run knows it."""

_END = re.compile(r"<(?=/script|!--)", re.IGNORECASE)
_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)
_SLOT = re.compile(r"%%([A-Z]+)%%")


class MissingLibraryError(Exception):
    """A library that the build brings isn't there; the message says the way out."""


@dataclass(frozen=True)
class Parts:
    """What stands in a page beside its data."""

    template: str
    style: str
    own: str
    libraries: tuple[str, ...]
    licences: tuple[dict[str, str], ...]


def parts(folder: Path = FOLDER) -> Parts:
    """Return the parts of a page.

    Args:
        folder: Where they lie.

    Raises:
        MissingLibraryError: If a library isn't there.
    """
    vendored: list[dict[str, Any]] = json.loads((folder / "vendored.json").read_bytes())
    scripts: list[str] = []
    licences: list[dict[str, str]] = []
    for package in vendored:
        script, licence = (_library(folder, file["name"], package) for file in package["files"])
        scripts.append(_inline(script))
        licences.append({name: package[name] for name in ("name", "version", "home")} | {"text": licence})
    own = "\n".join((folder / "script" / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    return Parts(
        template=(folder / "template.html").read_text("utf-8"),
        style=(folder / "page.css").read_text("utf-8"),
        own=_inline(f'(() => {{\n"use strict";\n{own}}})();'),
        libraries=tuple(scripts),
        licences=tuple(licences),
    )


def document(given: Parts, title: str, told: dict[str, object], blocks: Iterable[object]) -> Iterator[str]:
    """Yield the page, piece by piece.

    Args:
        given: Its parts.
        title: What its window is called.
        told: Data by the id of the element that holds it; the first is there when the page's own script starts.
        blocks: The data of the items' pages, each in an element of its own.
    """
    nonce = secrets.token_urlsafe(16)
    first, *rest = told.items()
    scripts = "".join(f"<script>{text}</script>\n" for text in (given.own, *given.libraries))
    slots = {
        "POLICY": _policy((given.own, *given.libraries), nonce),
        "TITLE": html.escape(title),
        "GENERATOR": MADE_BY,
        "NONCE": nonce,
        "STYLE": given.style,
        "FIRST": _data(*first),
        "SCRIPTS": scripts,
    }
    yield _SLOT.sub(lambda slot: slots[slot[1]], given.template)
    yield from (_data(*each) for each in rest)
    yield from (_data(f"block-{number}", block) for number, block in enumerate(blocks))
    yield "</body>\n</html>\n"


def _policy(scripts: Iterable[str], nonce: str) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'nonce-{nonce}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _data(name: str, data: object) -> str:
    return f'<script type="application/json" id="{name}">{embedded(data)}</script>\n'


def _library(folder: Path, name: str, package: dict[str, Any]) -> str:
    try:
        return (folder / "vendor" / name).read_text("utf-8")
    except OSError:
        raise MissingLibraryError(
            f"{package['name']} {package['version']} is missing, which the build brings: install prefect-dispatch "
            "again (in a checkout: `uv sync --reinstall-package prefect-dispatch`) where npm's registry can be reached."
        ) from None


def _inline(script: str) -> str:
    """Return a script that doesn't end the element it stands in, nor asks for a map."""
    return _END.sub(r"<\\", _MAP.sub("", script))
