"""What a provider's JSON reports beside the answer: the model that served it, and the tokens that it took."""

from __future__ import annotations

import logging
from typing import Any, cast

from prefect_dispatch.scrub import scrub

MODEL_KEYS = (b'"model"', b'"modelVersion"')
"""Keys under which a provider names the model that served a call: OpenAI's and Anthropic's, Gemini's."""
MOST_TOKENS = 10**9
"""Tokens that one call can take, at most: what reports more is broken."""
LONGEST_NAME = 200
"""Characters of a model's name that are kept."""

_WITHIN = ("message", "response")
"""Where an event of a stream may hold what a body has at its top."""
_ZEROS: dict[str, dict[str, int]] = {
    "usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"), 0),
    "usageMetadata": dict.fromkeys(("promptTokenCount", "candidatesTokenCount", "totalTokenCount"), 0),
}
"""What stands for a usage that is unknown: no tokens at all, which no call takes."""
_DEEPEST = 4
_MOST_LOGGED = 256

_log = logging.getLogger("prefect_dispatch")
_logged: set[str] = set()


def read_body(body: Any, model: str) -> tuple[str, bool]:  # noqa: ANN401 -- JSON
    """Return the model that a response names, and whether its usage was replaced, as it can't be true.

    A usage with negative counts, texts, fractions or absurd numbers would break the parsing of a valid answer, or
    enter a sum. It is replaced in place by one without tokens, which stands for an unknown usage, and logged once for
    each model.

    Args:
        body: The response, or an event of a stream.
        model: The model that is asked, for the log.

    Example:
        >>> body = {"model": "m-2025-01-01", "usage": {"prompt_tokens": -1}}
        >>> read_body(body, "openai/m"), body["usage"]["prompt_tokens"]
        (('m-2025-01-01', True), 0)
    """
    served, changed = "", False
    for part in _parts(body):
        name = part.get("model") or part.get("modelVersion")
        served = served or (scrub(name[:LONGEST_NAME]) if isinstance(name, str) else "")
        for key, zeros in _ZEROS.items():
            said = part.get(key)
            if said is not None and not (isinstance(said, dict) and _is_sane(cast("dict[str, Any]", said))):
                part[key] = dict(zeros)
                changed = True
    if changed:
        _log_once(model)
    return served, changed


def _parts(body: Any) -> list[dict[str, Any]]:  # noqa: ANN401 -- JSON
    if not isinstance(body, dict):
        return []
    top = cast("dict[str, Any]", body)
    return [top, *(cast("dict[str, Any]", top[key]) for key in _WITHIN if isinstance(top.get(key), dict))]


def _is_sane(usage: object, depth: int = 0) -> bool:
    """Return whether every count of tokens in a usage is a whole number that a call can take."""
    if isinstance(usage, list):
        return depth < _DEEPEST and all(_is_sane(part, depth + 1) for part in cast("list[object]", usage))
    if not isinstance(usage, dict):
        return True
    counts = cast("dict[str, object]", usage)
    for name, value in counts.items():
        if isinstance(value, (dict, list)):
            if depth >= _DEEPEST or not _is_sane(cast("object", value), depth + 1):
                return False
        elif _counts(name) and value is not None and not is_count(value):
            return False
    return depth > 0 or all(counts.get(name, 0) is not None for name in ("prompt_tokens", "completion_tokens"))


def is_count(value: object) -> bool:
    """Return whether a value is a count of tokens that a call can take."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


def _counts(name: str) -> bool:
    return name.lower().endswith(("tokens", "tokencount", "requests"))


def _log_once(model: str) -> None:
    if model not in _logged and len(_logged) < _MOST_LOGGED:
        _logged.add(model)
        _log.warning("%s: the response reports a usage that can't be true; it counts as unknown (unsettled).", model)
