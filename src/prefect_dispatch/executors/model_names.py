"""Whether the model that a response names is the one that was asked for.

Providers answer under other names than they are asked by: with the date of a snapshot, without the prefix of a
provider, by the path of a file, in another order of words. All of these are the same model. A size, a version or a
family that differs is another one.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_FILE = re.compile(r"\.(?:gguf|ggml|safetensors|bin)$")
_QUANTIZED = re.compile(r"[-._](?:i?q\d(?:_[a-z0-9]+)*|f16|bf16|f32)$")
"""How the file of a model says that its weights are rounded."""
_VARIANT = re.compile(r":(?:free|nitro|floor|online|extended|exacto|latest|\d+)$")
"""What a router or a registry adds to a name: price and speed, not another model. `-v1:0` is Bedrock's."""
_BEDROCK = re.compile(
    r"^(?:(?:us|eu|apac|jp|au|ca|us-gov|global)\.)?(?:ai21|amazon|anthropic|cohere|deepseek|meta|mistral|openai|qwen)\."
)
_STAMP = re.compile(r"[-@](20\d{2}-?[01]\d-?[0-3]\d|[01]\d-20\d{2}|[01]\d-[0-3]\d|[01]\d[0-3]\d|2\d[01]\d|00\d)$")
"""The date or the number of a snapshot at the end of a name: `-2025-08-07`, `-20250929`, `-0613`, `-2411`, `-001`."""
_LATEST = re.compile(r"[-:]latest$")
_RENAMED = {"gpt-4-turbo-preview": "gpt-4-0125-preview"}
"""Names of one model that no rule relates."""
_DEPLOYMENTS = ("azure/", "azure_ai/", "azure_text/", "sagemaker/", "sagemaker_chat/")
"""Providers that are asked for a deployment, whose name says nothing of its model."""
_ROUTERS = re.compile(r"(?:^|/)(?:auto|model[-_]router)(?::[a-z]+)?$|(?:^|/)arn:|^vertex_ai/(?:openai/)?\d+$")
"""Names behind which a provider chooses the model: OpenRouter's `auto`, Azure's router, profiles, endpoints."""


def is_expected_model(asked: str, served: str, accepted: Sequence[str] = ()) -> bool:
    """Return whether an answer came from the model that was asked for, as far as that can be known.

    Args:
        asked: The model as the executor names it, with its provider.
        served: The model that the response names; empty where it names none, which proves nothing.
        accepted: Patterns (globs, in any case) of further names that are expected.

    Example:
        >>> is_expected_model("openai/gpt-5-mini", "gpt-5-mini-2025-08-07")
        True
        >>> is_expected_model("openai/gpt-5", "gpt-5-mini-2025-08-07")
        False
        >>> is_expected_model("azure/my-deployment", "gpt-4o-2024-08-06")
        True
        >>> is_expected_model("azure/my-deployment", "gpt-4o-2024-08-06", ["gpt-5*"])
        False
    """
    if not served or _matches(served, accepted):
        return True
    if asked.startswith(_DEPLOYMENTS) or _ROUTERS.search(asked.lower()):
        return not accepted
    return _is_same(asked, served)


def _matches(served: str, accepted: Sequence[str]) -> bool:
    names = {served.lower(), served.lower().rpartition("/")[2]}
    return any(fnmatchcase(name, pattern.lower()) for pattern in accepted for name in names)


@lru_cache(maxsize=1 << 10)  # all answers of a run have the same few names
def _is_same(asked: str, served: str) -> bool:
    mine, theirs = _base(asked), _base(served)
    if mine == theirs or _RENAMED.get(mine) == theirs:
        return True
    mine_words, mine_stamp, is_latest = _parts(mine)
    their_words, their_stamp, _ = _parts(theirs)
    if is_latest:  # the name moves from version to version, so that only the family must be the same
        return _without_numbers(mine_words) == _without_numbers(their_words)
    return mine_words == their_words and (not mine_stamp or not their_stamp or mine_stamp == their_stamp)


def _base(name: str) -> str:
    """Return the name of a model without provider, organization, folder and file type, in small letters."""
    base = name.lower().replace("\\", "/").rstrip("/").rpartition("/")[2]
    if _FILE.search(base):
        base = _QUANTIZED.sub("", _FILE.sub("", base))
    return re.sub(r"-v\d+$", "", _VARIANT.sub("", base)) if (base := _BEDROCK.sub("", base)) else name


def _parts(base: str) -> tuple[tuple[str, ...], str, bool]:
    """Return the words of a name in one order, the stamp of its snapshot, and whether it means the latest one."""
    is_latest = bool(_LATEST.search(base))
    base = _LATEST.sub("", base)
    found = _STAMP.search(base)
    stamp = found[1].replace("-", "") if found else ""
    words = re.split(r"[-._ @:]+", base[: found.start()] if found else base)
    return tuple(sorted(filter(None, words))), stamp, is_latest


def _without_numbers(words: Sequence[str]) -> list[str]:
    return [word for word in words if not re.fullmatch(r"\d+|preview|exp", word)]
