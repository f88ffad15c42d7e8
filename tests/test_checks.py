"""Checks of a brief."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from prefect_dispatch.errors import BriefError
from prefect_dispatch.models.checks import Check, Function, MaxWords, MustMention, Regex, source_digest
from prefect_dispatch.models.item import Item

if TYPE_CHECKING:
    from pydantic import JsonValue

ITEM = Item(key="mit.txt", value={"title": "MIT"})
ANY: TypeAdapter[Check] = TypeAdapter(Check)


def no_years(value: Any, item: Item) -> str | None:  # noqa: ANN401 -- any JSON
    """A check of a user's own."""
    return f"{item.key} has no years." if "years" not in value else None


@pytest.mark.parametrize(
    ("check", "value", "problem"),
    [
        pytest.param(Regex(pattern=r"\d"), "In 1999", None, id="regex"),
        pytest.param(Regex(pattern=r"^\d"), "In 1999", r"the answer must match the pattern '^\\d'.", id="no-match"),
        pytest.param(Regex(field="a.b", pattern="x"), {"a": {"b": "x"}}, None, id="regex-in-a-field"),
        pytest.param(Regex(field="a.b", pattern="x"), {"a": "x"}, "field 'a.b' is missing.", id="no-such-field"),
        pytest.param(Regex(field="a", pattern=r"\[1,2\]"), {"a": [1, 2]}, None, id="regex-over-json"),
        pytest.param(MaxWords(words=2), "one  two\n", None, id="few-words"),
        pytest.param(MaxWords(words=2), "one two three", "the answer has 3 words; the most is 2.", id="many-words"),
        pytest.param(MaxWords(words=1, field="a"), {}, None, id="no-field-no-words"),
        pytest.param(MustMention(terms=("{title}", "ß")), "the mit licence, STRASSE, SS", None, id="whatever-case"),
        pytest.param(
            MustMention(terms=("{title}", "BSD", "GPL"), field="t"),
            {"t": "MIT"},
            "field 't' must mention 'BSD', 'GPL'.",
            id="not-mentioned",
        ),
        pytest.param(MustMention(terms=("x",), field="t"), {}, "field 't' must mention 'x'.", id="nothing-mentioned"),
        pytest.param(Function(function=no_years), {"years": 1}, None, id="function"),
        pytest.param(Function(function=no_years), {}, "mit.txt has no years.", id="function-that-objects"),
    ],
)
def test_checks(check: Check, value: JsonValue, problem: str | None) -> None:
    """A check finds nothing, or says in a sentence what the agent must mend."""
    assert check.problem(value, ITEM) == problem


@pytest.mark.slow
def test_an_async_function_is_no_check() -> None:
    """What it returns would never be looked at, so it is refused."""

    async def check(value: JsonValue, item: Item) -> str | None:
        return None

    with pytest.raises(ValueError, match="must not be async: 'check'"):
        Function(function=check)


@pytest.mark.slow
def test_a_hostile_text_ends_the_search_not_the_run() -> None:
    """A pattern that would search for ages is given up."""
    found = Regex(pattern="^(?:a|aa)+$").problem("a" * 60 + "!", ITEM)
    assert found is not None
    assert "could not be searched" in found


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(Regex(pattern="x", field="a"), id="regex"),
        pytest.param(MaxWords(words=3), id="max-words"),
        pytest.param(MustMention(terms=("a", "b")), id="must-mention"),
        pytest.param(Function(function="checks:no_years"), id="function"),
    ],
)
def test_checks_survive_json(check: Check) -> None:
    """What a job file says is what comes back from a deployment's parameters."""
    assert ANY.validate_json(ANY.dump_json(check)) == check


def test_a_function_is_written_down_by_name() -> None:
    """JSON holds the name of a function, never its code."""
    dumped = Function(function=no_years).model_dump(mode="json")
    assert dumped == {"kind": "function", "function": f"{__name__}:no_years"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"kind": "regex", "pattern": "("}, "not a regular expression: missing \\)", id="pattern"),
        pytest.param({"kind": "function", "function": "rm -rf"}, "must be a function or 'module:name'", id="function"),
        pytest.param({"kind": "function", "function": 3}, "must be a function or 'module:name', not 3", id="number"),
        pytest.param({"kind": "max_words", "words": 0}, "greater than or equal to 1", id="no-words"),
        pytest.param({"kind": "must_mention", "terms": []}, "at least 1 item", id="no-terms"),
        pytest.param(
            {"kind": "max_word", "words": 1}, "'regex', 'max_words', 'must_mention', 'sources', 'function'", id="kind"
        ),
        pytest.param({"kind": "max_words", "word": 1}, "did you mean 'words'", id="unknown-key"),
    ],
)
def test_unusable_checks(given: dict[str, Any], message: str) -> None:
    """A check that can't work is an error before the run."""
    with pytest.raises(ValidationError, match=message):
        ANY.validate_python(given)


def test_the_source_of_a_function_counts() -> None:
    """Two functions have one digest if and only if they read the same; without a source there is none."""
    assert source_digest(no_years) == source_digest(no_years) != source_digest(test_checks)
    for unreadable in (functools.partial(no_years), eval("lambda value, item: None")):  # noqa: S307 -- as typed into a console
        with pytest.raises(BriefError, match="can't be read"):
            source_digest(unreadable)
