"""What MkDocs doesn't do by itself: it brings in the benchmarks' pictures, and colours what is good and what isn't."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

_PICTURE = re.compile(r"\]\(\.\./(benchmarks/[\w-]+\.png)\)")
"""A picture as a page names it that is read in the repository, from `docs`."""
_MARKED = re.compile(r'<span class="filename">(?=([✓✗]))')
"""The title of a block that shows what to write, or what not."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pictures to what the site holds."""
    root = Path(config.docs_dir).parent
    for picture in sorted((root / "benchmarks").glob("*.png")):
        files.append(File.generated(config, picture.relative_to(root).as_posix(), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401 -- what MkDocs says beside it
    """Have pages name the pictures where the site has them."""
    return _PICTURE.sub(r"](\1)", markdown)


def on_page_content(html: str, **_: Any) -> str:  # noqa: ANN401 -- what MkDocs says beside it
    """Tell the style which blocks are good, and which aren't."""
    return _MARKED.sub(lambda found: f'<span class="filename {"good" if found[1] == "✓" else "bad"}">', html)
