"""Use of the tokenizer files that litellm ships, as there is no network."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path


def use_bundled_tokenizers() -> None:
    """Make tiktoken find the tokenizer files in litellm's package."""
    found = find_spec("litellm")
    if found and found.origin:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(found.origin).parent / "litellm_core_utils" / "tokenizers")
