"""What MkDocs doesn't do by itself: the pictures that stand beside the benchmarks are brought into the site."""

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


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pictures to what the site holds."""
    root = Path(config.docs_dir).parent
    for picture in sorted((root / "benchmarks").glob("*.png")):
        files.append(File.generated(config, picture.relative_to(root).as_posix(), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401 -- what MkDocs says beside it
    """Have pages name the pictures where the site has them."""
    return _PICTURE.sub(r"](\1)", markdown)
