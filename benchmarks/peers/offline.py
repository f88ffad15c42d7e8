"""Tokenizers without a network: those that litellm ships."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path


def offline() -> None:
    """Let what is loaded from now on find them."""
    found = find_spec("litellm")
    if found and found.origin:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(found.origin).parent / "litellm_core_utils" / "tokenizers")
