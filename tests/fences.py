"""The fenced blocks of a page, so that a test can hold the page to them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from pathlib import Path

_TITLE = re.compile(r'title="([^"]*)"')


@dataclass(frozen=True)
class Fence:
    """A fenced block."""

    page: str
    """The name of the page's file."""
    line: int
    """The line of the page on which its text starts."""
    language: str
    """What stands behind the fence's opening; empty where nothing does."""
    title: str
    """Its title, which the site shows above it."""
    text: str
    """What stands in it."""

    def __str__(self) -> str:
        """Return where it is."""
        return f"{self.page}:{self.line}"


def fences(page: Path) -> list[Fence]:
    """Return the fenced blocks of a Markdown page, in order."""
    found: list[Fence] = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "code_block":
            assert "```" not in token.content, f"{page.name}: a fence that is indented escapes its test"
        if token.type == "fence":
            assert token.map is not None
            language, _, rest = token.info.partition(" ")
            title = _TITLE.search(rest)
            found.append(Fence(page.name, token.map[0] + 2, language, title[1] if title else "", token.content))
    return found
