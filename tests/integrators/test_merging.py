"""What an integrator of anybody's may get wrong, and what is said of it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from prefect.exceptions import TerminationSignal

from prefect_dispatch.errors import JobError, MergeError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.base import copy_mutable_value
from prefect_dispatch.integrators.run_merge import (
    integrator_problem,
    merge_digest,
    prepare_integrator,
    require_serializable,
    run_integrator,
)
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Loser, Merge, Ref, Table
from prefect_dispatch.models.outcome import Outcome
from tests.integrators.said import say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief

SAID = [say("a", {"x": [1]}), say("b", {"x": [2]})]
LEDGER = tuple(LedgerRow(brief="terms", item=key, disposition="merged") for key in "ab")
REF = Ref(brief="terms", item="a")
NAN, HALF = float("nan"), "\ud800"


def merge_of(**parts: Any) -> Merge:  # noqa: ANN401 -- any part of a merge
    """Return a merge with parts of its own."""
    return Merge.model_construct(**{**dict(Merge(value=1, ledger=LEDGER)), **parts})


def deep(levels: int) -> JsonValue:
    """Return a list in a list in a list."""
    return [deep(levels - 1)] if levels else None


class Own:
    """An integrator of somebody's, which returns what it is told to."""

    def __init__(self, made: Callable[[], Any]) -> None:
        """Keep what to return."""
        self.made = made

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Return it."""
        merge: Merge = self.made()
        return merge


class One:
    """Takes too little."""

    def merge(self, outcomes: Sequence[Outcome]) -> Merge:
        """Merge without the briefs."""
        return Merge(value=None, ledger=())


class Drip:
    """Yields instead of returning."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Any:  # noqa: ANN401 -- a generator
        """Yield a merge."""
        yield Merge(value=None, ledger=())


class Word:
    """Has a word where a method should be."""

    merge = "all"


@pytest.mark.parametrize(
    ("integrator", "why"),
    [
        pytest.param(Own(dict), None, id="fine"),
        pytest.param(Own, "Own is a class, not an integrator: pass an object of it, such as Own().", id="class"),
        pytest.param(One(), "its method 'merge' must take 2 arguments: briefs, outcomes.", id="arity"),
        pytest.param(Drip(), "its method 'merge' must return at once: neither be async nor yield.", id="yields"),
        pytest.param(Word(), "its method 'merge' must be a function, not str.", id="no-method"),
        pytest.param(None, "NoneType is not an integrator: it needs a method 'merge'", id="none"),
    ],
)
def test_what_cannot_merge_is_told_beforehand(integrator: object, why: str | None) -> None:
    """Each reason in a sentence, with the way out."""
    found = integrator_problem(integrator)
    assert (found is None) if why is None else (found is not None and why in found)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        pytest.param(lambda: None, "The integrator Own returned nothing; it must return a Merge(", id="nothing"),
        pytest.param(dict, "The integrator Own returned a dict; it must return a Merge(", id="dict"),
        pytest.param(
            lambda: Merge(value=object(), ledger=()),  # pyright: ignore[reportArgumentType]
            "The integrator Own raised ValidationError: Merge.value: input was not a valid JSON value",
            id="no-json",
        ),
        pytest.param(
            lambda: Merge(value=deep(300), ledger=()),
            "The integrator Own raised ValidationError: Merge.value.list.0.list.0: ",
            id="deep",
        ),
        pytest.param(lambda: 1 / 0, "The integrator Own raised ZeroDivisionError: division by zero.", id="raises"),
        pytest.param(lambda: sys.exit(0), "The integrator Own raised SystemExit: 0.", id="exits"),
        pytest.param(lambda: sys.exit("key sk-0123456789abcdef"), "raised SystemExit: key ***.", id="exits-with-a-key"),
    ],
)
def test_what_is_no_merge_is_told_with_its_integrator(made: Callable[[], Any], message: str) -> None:
    """Nothing that was paid for is lost, and the message says so."""
    with pytest.raises(MergeError) as caught:
        run_integrator(Own(made), [], SAID)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "The agents' answers are stored" in str(caught.value)


@pytest.mark.parametrize("end", [KeyboardInterrupt, asyncio.CancelledError, TerminationSignal])
def test_what_ends_a_run_from_outside_ends_a_merge(end: type[BaseException]) -> None:
    """Ctrl-C and a cancelled run are no failure of an integrator."""

    def ended() -> None:
        raise end(2)

    with pytest.raises(end):
        run_integrator(Own(ended), [], SAID)


class Forgetful(Own):
    """Says what it needs, and forgets to return itself."""

    def with_items(self, briefs: Sequence[Brief], items: Sequence[Item]) -> Any:  # noqa: ANN401 -- itself, it should be
        """Return nothing."""


@pytest.mark.parametrize(
    ("integrator", "message"),
    [
        pytest.param(Own, "Own is a class, not an integrator", id="class"),
        pytest.param(
            Forgetful(dict),
            r"The method 'with_items' of Forgetful must return an integrator \(such as self\), but it didn't",
            id="nothing",
        ),
    ],
)
def test_what_makes_no_integrator_ready_is_refused_beforehand(integrator: Any, message: str) -> None:  # noqa: ANN401 -- what a caller passes by mistake
    """Whatever an integrator makes of itself must merge, too."""
    with pytest.raises(JobError, match=message):
        prepare_integrator(integrator, [], [Item(key="a", value=1)], Path())


NO_NUMBER = "NaN or an infinity, which JSON has not, at"
NO_LETTER = "half of a character (a lone surrogate), at"
ROW = FieldRow(path="", winner=1, rule="own", sources=(REF,), losers=(Loser(value=NAN, sources=(REF,)),))


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        pytest.param(merge_of(value={"a": [1, NAN]}), f"'value' holds {NO_NUMBER} /a/1;", id="nan"),
        pytest.param(merge_of(value=-float("inf")), f"'value' holds {NO_NUMBER} /;", id="infinity"),
        pytest.param(merge_of(value={HALF: 1}), f"'value' holds {NO_LETTER} /;", id="name"),
        pytest.param(merge_of(rules=HALF), f"'rules' holds {NO_LETTER} /;", id="rules"),
        pytest.param(merge_of(shortfalls=("fine", HALF)), f"'shortfalls' holds {NO_LETTER} /1;", id="sentence"),
        pytest.param(
            merge_of(tables=(Table(name="t", title="T", rows=({"cell": NAN},)),)),
            f"'tables' holds {NO_NUMBER} /0/rows/0/cell;",
            id="table",
        ),
        pytest.param(merge_of(fields=(ROW,)), f"'fields' holds {NO_NUMBER} /0/losers/0/value;", id="loser"),
    ],
)
def test_what_json_has_not_is_told_with_its_place(merge: Merge, message: str) -> None:
    """A merge is published as JSON: what would come out as something else, or not at all, is named."""
    with pytest.raises(MergeError) as caught:
        require_serializable(merge, Own(dict))
    assert message in str(caught.value)


def test_what_was_put_there_later_is_told_too() -> None:
    """A value may be changed once it was validated."""
    merge = Merge(value={}, ledger=())
    cast("dict[str, Any]", merge.value)["x"] = object()
    with pytest.raises(MergeError, match="'value' holds an object of type object, at /x"):
        require_serializable(merge, Own(dict))


@pytest.mark.parametrize("value", ["NaN", {"Infinity": "-Infinity"}, "ü😀", None, 10**30])
def test_what_json_has_is_left_alone(value: Any) -> None:  # noqa: ANN401 -- any JSON value
    """Words that look like no number, and numbers that are large, are words and numbers."""
    require_serializable(merge_of(value=value), Own(dict))


class Sly:
    """Changes what is not its own."""

    def __init__(self, what: str) -> None:
        """Keep what it changes."""
        self.first: Merge | None = None
        self.what = what

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Return what all say, and change what it was given, or what it returned earlier."""
        if self.what == "input":
            for outcome in outcomes:
                _bend(outcome.value)
        if self.what == "earlier" and self.first is not None:
            _bend(self.first.value)
        row = FieldRow(path="", winner={"x": [1]}, rule="own:first", sources=(REF, Ref(brief="terms", item="b")))
        merge = Merge(value={"x": [1]}, ledger=LEDGER, fields=(row,))
        self.first = self.first or merge
        return merge

    def as_outcomes(self, merge: Merge) -> list[Outcome] | None:
        """Return the value as an answer, and change it."""
        if self.what == "value":
            _bend(merge.value)
        return [Outcome(brief="all", item="all", status="succeeded", value=merge.value)]


def _bend(value: Any) -> None:  # noqa: ANN401 -- any JSON value
    value["x"] = [9]


@pytest.mark.parametrize(("what", "caught"), [("input", False), ("earlier", True), ("value", True)])
def test_what_was_audited_is_what_is_published(what: str, *, caught: bool) -> None:
    """What an integrator does to what it was given changes nothing; what it does to its merge is found."""
    said, sly = [say("a", {"x": [1]}), say("b", {"x": [1]})], Sly(what)
    merge = sly.merge([], [*map(copy_mutable_value, said)])
    messages = [found.message for found in audit(merge, said, [], sly)]
    assert ("the integrator changed its merge after it had returned it." in messages) is caught
    assert merge.value == {"x": [9 if caught else 1]}
    assert said[0].value == {"x": [1]}
    assert messages == [] or caught


def test_what_can_not_be_written_has_no_seal() -> None:
    """It is never taken for another merge."""
    merge = Merge(value={"a": 1}, ledger=LEDGER)
    assert merge_digest(merge) == merge_digest(merge.model_copy())
    assert merge_digest(merge.model_copy(update={"value": {"a": object()}})) is None
