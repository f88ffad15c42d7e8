"""What is written piece by piece is what pydantic writes, and takes no room of its size."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticSerializationError, to_json

from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Loser, Merge, Ref
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.html.document import TextPreviews, to_readable_text
from prefect_dispatch.serialization.json_text import digest, iter_json_chunks, streamed_digest
from prefect_dispatch.serialization.json_values import exact_text, is_identical

if TYPE_CHECKING:
    from pydantic import JsonValue

NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text('ab\n"é{', max_size=3), inside, max_size=4),
    max_leaves=20,
)
INDENTS = st.sampled_from((None, 1, 2))
REF = Ref(brief="b", item="i")


@given(VALUES, INDENTS, st.sampled_from((0, 1, 99, 100, 201)))
def test_a_value_is_written_as_a_whole_would_be(value: JsonValue, indent: int | None, times: int) -> None:
    """Byte for byte, however long its lists, in one line or indented."""
    for whole in (value, [value] * times, {"list": [value] * times, "in": {"it": [value] * times}}):
        assert b"".join(iter_json_chunks(whole, indent=indent)) == to_json(whole, indent=indent)


@pytest.mark.slow
@given(VALUES, st.sampled_from((1, 99, 100, 201)))
def test_a_long_list_has_its_elements_in_a_line_each(value: JsonValue, times: int) -> None:
    """The same JSON in less room; a list that is not long is indented as ever."""
    whole = {"list": [value] * times, "in": {"it": [value] * times}}
    text = b"".join(iter_json_chunks(whole, indent=2, long=50))
    assert json.loads(text) == json.loads(to_json(whole))
    if times == 1:
        assert text == to_json(whole, indent=2)
    else:
        assert text.count(b"\n") == 2 * times + 7


@given(VALUES, INDENTS)
def test_a_model_is_written_as_pydantic_does(value: JsonValue, indent: int | None) -> None:
    """What it leaves out is left out, and its parts are written by their own rules."""
    row = FieldRow(path="", winner=value, rule="own", sources=(REF,), losers=(Loser(value=value, sources=(REF,)),))
    outcome = Outcome(brief="b", item="i", status="succeeded", value=value)
    merge = Merge(
        value=value,
        ledger=(LedgerRow(brief="b", item="i", disposition="merged"),),
        fields=(row,) * 3,
        asked=(outcome,),
    )
    report = Report(
        status="complete",
        message="1 of 1 answered.",
        value=value,
        ledger=merge.ledger,
        fields=merge.fields,
        outcomes=(outcome,),
        run={"started": "now", "parts": [value]},
    )
    for whole in (merge, report):
        assert b"".join(iter_json_chunks(whole, indent=indent)).decode() == whole.model_dump_json(indent=indent)


@pytest.mark.parametrize(
    ("odd", "said"), [("null", b'{"a":[null,1]}'), ("constants", b'{"a":[NaN,1]}')], ids=["null", "by-name"]
)
def test_a_number_that_json_has_not_is_written_as_wanted(odd: Any, said: bytes) -> None:  # noqa: ANN401 -- one of two words
    """As null, as pydantic's models write it, or by its name, for whoever looks for it."""
    assert b"".join(iter_json_chunks({"a": [float("nan"), 1]}, odd=odd)) == said


@given(VALUES, st.sampled_from((1, 100, 201)))
def test_a_digest_in_pieces_is_that_of_the_whole(value: JsonValue, times: int) -> None:
    """What was remembered of an earlier run stays known."""
    wholes: list[JsonValue] = [value, [value] * times, {"b": [value] * times, "a": {"in": [value]}}]
    for whole in wholes:
        assert streamed_digest(whole) == digest(whole)


@given(VALUES, st.sampled_from((1, 100)), st.integers(0, 200))
def test_the_beginning_of_a_value_is_that_of_its_text(value: JsonValue, times: int, length: int) -> None:
    """Cut at the same place, and as much is said to be missing."""
    texts = TextPreviews()
    for whole in (value, [value] * times):
        assert texts.preview_value(whole, length) == texts.preview(to_readable_text(whole), length)


@pytest.mark.parametrize("value", ["\ud800", {"\ud800": 1}, [object()], {"a": {"b": object()}}])
def test_what_cannot_be_written_is_an_error(value: Any) -> None:  # noqa: ANN401 -- no JSON
    """Wherever it stands."""
    with pytest.raises(PydanticSerializationError):
        list(iter_json_chunks(value))


@given(VALUES, VALUES, st.sampled_from((1, 100, 101)))
def test_values_are_the_same_where_their_texts_are(one: JsonValue, other: JsonValue, times: int) -> None:
    """However they are taken apart; names may stand in any order."""
    turned = json.loads(json.dumps(one, sort_keys=True))
    assert is_identical([one] * times, [turned] * times)
    assert is_identical({"a": one, "b": 1}, {"b": 1, "a": turned})
    for left, right in ((one, other), ([one] * times, [*[one] * (times - 1), other]), ({"a": one}, {"a": other})):
        assert is_identical(left, right) is (exact_text(left) == exact_text(right))


def test_a_large_report_is_written_in_little_room() -> None:
    """A text of the whole would take its size, and more while it grows."""
    answers: list[JsonValue] = [f"{at} " + "x" * 1000 for at in range(20_000)]
    report = Report(status="complete", message="all answered", value=answers)
    tracemalloc.start()
    try:
        size = sum(map(len, iter_json_chunks(report, indent=2)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 20_000_000
    assert peak < size / 5
