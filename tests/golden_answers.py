"""Answers of a model that depend on the request alone, so that a run over them can be compared byte for byte.

Give `answer` to `tests.openai_server.openai_server`. A JSON Schema in the request is filled in; a field that the item
has is copied from it, anything else is chosen by a digest of the request. Without a schema the answer is a sentence,
or, where numbered answers are to be cited, a text that cites most of them. An item with the text `fault: busy` meets
the fault of that name (see `FAULTS`).
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from tests.openai_server import Behaviour, document, failure
from tests.openai_wire import completion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import JsonValue

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "loess")
LONGEST_LETTER = 80
"""Characters of a letter beyond which it is refused as too long."""
_PROSE = "Write from these answers alone."
_ANSWERS = re.compile(r"(?m)^\[(\d+)\] .*:\n    (.*)$")


def answer(request: dict[str, Any], n: int) -> Behaviour:
    """Return the answer to a request.

    Args:
        request: The body of the request.
        n: How often its document was asked by now, from 1 on.
    """
    item, system = _item(request), str(request["messages"][0]["content"])
    if (fault := re.search(r"fault: (\w+)", item)) and (behaviour := FAULTS[fault[1]](request, n)):
        return behaviour
    if "One letter." in system and len(item) > LONGEST_LETTER:
        return failure(400, "the letter is too long", code="context_length_exceeded")
    content = _content(request, item, system)
    sent = sum(len(str(message["content"])) for message in request["messages"])
    return Behaviour(content=content, prompt_tokens=sent // 4, completion_tokens=len(content) // 4)


def _busy(_request: object, n: int) -> Behaviour | None:
    return failure(429, "slow down", retry_after=0.1) if n == 1 else None


def _down(_request: object, n: int) -> Behaviour | None:
    return failure(500, "out of order") if n == 1 else None


def _invalid(_request: object, n: int) -> Behaviour | None:
    return Behaviour(content='{"word": 3}') if n == 1 else None


def _stubborn(request: Mapping[str, Any], _n: int) -> Behaviour | None:
    return Behaviour(content="no JSON at all") if request["model"] == "golden" else None


def _refused(_request: object, _n: int) -> Behaviour:
    return Behaviour(content=None, refusal="I can't help with that.")


def _broken(_request: object, _n: int) -> Behaviour:
    return failure(400, "the request is malformed")


def _other(request: Mapping[str, Any], _n: int) -> Behaviour:
    """Answer as another model than the one that was asked."""
    message = {"role": "assistant", "content": '{"word": "other", "sure": true}', "refusal": None}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return Behaviour(body=completion({**request, "model": "another-model"}, message, "stop", usage))


FAULTS: dict[str, Callable[[dict[str, Any], int], Behaviour | None]] = {
    "busy": _busy,
    "down": _down,
    "invalid": _invalid,
    "stubborn": _stubborn,
    "refused": _refused,
    "broken": _broken,
    "other": _other,
}
"""What goes wrong with an item of the text `fault: <name>`; None: nothing, this time."""


def _item(request: Mapping[str, Any]) -> str:
    """Return the item of a request, without the tags around it."""
    return re.sub(r"\A<item-\w+>\n|\n</item-\w+>\Z", "", document(request))


def _content(request: dict[str, Any], item: str, system: str) -> str:
    schema: dict[str, Any] | None = request.get("response_format", {}).get("json_schema", {}).get("schema")
    number = int.from_bytes(hashlib.sha256(json.dumps(request, sort_keys=True).encode()).digest()[:6], "big")
    if schema is None:
        return _text(item, system) if _PROSE in system else f"It is a {_words(number, 3)}."
    try:
        fields: object = json.loads(item)
    except ValueError:
        fields = None
    known = cast("dict[str, JsonValue]", fields) if isinstance(fields, dict) else {}
    correction = 1 if "correct" in system else 0
    return json.dumps(_filled(schema, number, {**known, "path": "/findings/0", "ids": [1, 2]}, correction))


def _text(item: str, system: str) -> str:
    """Return a text that cites every answer but the second, and gives a number that nobody said."""
    said = [f"It says {answer[:60]!r} [{number}]." for number, answer in _ANSWERS.findall(item) if number != "2"]
    sections = re.findall(r"## (.+?)(?= ## |\n|\Z)", system)
    body = "\n".join([*said, "It took 99 days [1]."])
    return "\n\n".join(f"## {name}\n\n{body}" for name in sections) or body


def _filled(schema: dict[str, Any], number: int, known: Mapping[str, JsonValue], correction: int) -> JsonValue:
    """Return a value by a schema.

    Args:
        schema: The schema: types, `enum`, `properties` and `items` count.
        number: What chooses.
        known: Values by the names of fields; used where there is one.
        correction: What is added to a known whole number.
    """
    fill = partial(_filled, known=known, correction=correction)
    if "enum" in schema:
        choices: list[JsonValue] = schema["enum"]
        return choices[number % len(choices)]
    kind = schema.get("type", "string")
    if isinstance(kind, list):
        kind = cast("list[str]", kind)[0]
    if kind == "object":
        fields: dict[str, dict[str, Any]] = schema.get("properties", {})
        return {
            name: _field(name, part, number // (at + 2), known, correction)
            for at, (name, part) in enumerate(fields.items())
        }
    if kind == "array":
        return [fill(schema["items"], number // (at + 3)) for at in range(2)]
    plain: dict[str, JsonValue] = {"boolean": number % 2 == 0, "integer": number % 100, "number": number % 1000 / 10}
    return plain.get(kind, _words(number, 3))


def _field(
    name: str, schema: dict[str, Any], number: int, known: Mapping[str, JsonValue], correction: int
) -> JsonValue:
    value = known.get(name)
    if value is None or "enum" in schema:
        return _filled(schema, number, known, correction)
    return value + correction if isinstance(value, int) else value


def _words(number: int, count: int) -> str:
    chosen: list[str] = []
    for _ in range(count):
        number, place = divmod(number, len(WORDS))
        chosen.append(WORDS[place])
    return " ".join(chosen)
