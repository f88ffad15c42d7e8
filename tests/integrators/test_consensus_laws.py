"""The laws that no consensus may break: order-free, idempotent, nothing lost, nothing invented, every vote counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.models.ledger import FieldRow, Merge, Ref
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.serialization.json_values import content_text, exact_text
from tests.integrators.strategies import JSON, SCALARS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

SURE = settings(deadline=None, max_examples=60)
LABELS: st.SearchStrategy[Any] = st.sampled_from(["yes", "no", "Yes ", None, True, 1, 1.0])
NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.integers(-5, 5), st.sampled_from([0.1, 0.2, 1e308, -1e308, 10**400, 3.0]), st.floats(-10, 10)
)
TEXTS: st.SearchStrategy[Any] = st.sampled_from(
    ["The licence allows use.", "the licence allows use", "It forbids sale.\nMostly.", "x" * 90, "y" * 90, ""]
)
LISTS: st.SearchStrategy[Any] = st.lists(st.sampled_from(["x", "X ", "y", 1, 1.0, None]), max_size=4)
RECORDS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"number": NUMBERS, "tags": LISTS, "label": LABELS},
    optional={
        "text": TEXTS,
        "in": st.fixed_dictionaries({}, optional={"label": LABELS, "a/b~c": NUMBERS}) | st.none(),
        "value": LABELS,
        "item": st.sampled_from(["item 0", "item 1"]),
        "any": JSON,
    },
)
ANSWERS = [RECORDS, RECORDS, LABELS, NUMBERS, LISTS, RECORDS | LABELS | NUMBERS | LISTS | SCALARS | JSON]


@st.composite
def votes(draw: st.DrawFn) -> list[Outcome]:
    """Return what up to five agents say of up to three items; now and then they have no answer."""
    made: list[Outcome] = []
    answers = draw(st.sampled_from(ANSWERS))  # most agents speak of the same thing
    for agent in range(draw(st.integers(1, 5))):
        first = draw(st.integers(0, 1))
        for at in range(3):
            status = draw(st.sampled_from(["succeeded"] * 7 + ["failed", "skipped"]))
            answered = status == "succeeded"
            made.append(
                Outcome.model_validate(
                    {
                        "brief": f"agent-{agent}",
                        "item": f"item {at}",
                        "status": status,
                        "value": draw(answers) if answered else None,
                        "error": None if answered else Failure(kind="timeout", message="No answer."),
                        "brief_priority": first,
                    }
                )
            )
    return made


@st.composite
def polls(draw: st.DrawFn) -> Consensus:
    """Return a consensus by any rules that need no learning."""
    rules = st.sampled_from(["majority", "weighted", "mean", "robust_mean", "median", "medoid", "priority"])
    fields = st.sampled_from(["label", "number", "text", "tags", "in", "in.label", "any"])
    method = draw(st.sampled_from(["majority", "weighted"]))
    return Consensus.model_validate(
        {
            "method": method,
            "rules": draw(st.dictionaries(fields, rules, max_size=3)),
            "weights": {"agent-0": draw(st.sampled_from([0.1, 2, 3.5]))},
            "min_votes": draw(st.integers(1, 3)),
        }
        if method == "weighted"
        else {
            "rules": draw(st.dictionaries(fields, rules.filter(lambda rule: rule != "weighted"), max_size=3)),
            "min_votes": draw(st.integers(1, 3)),
        }
    )


@given(st.data(), polls(), votes())
@SURE
def test_order_does_not_matter(data: st.DataObject, consensus: Consensus, said: list[Outcome]) -> None:
    """However the outcomes are shuffled, the merge is the same, byte for byte."""
    shuffled = data.draw(st.permutations(said))
    assert consensus.merge([], shuffled).model_dump_json() == consensus.merge([], said).model_dump_json()


@given(polls(), votes())
@SURE
def test_the_consensus_of_a_consensus_is_itself(consensus: Consensus, said: list[Outcome]) -> None:
    """What agents agreed on, put to the vote again, is the same value, byte for byte."""
    merge = consensus.merge([], said)
    assert exact_text(consensus.merge([], consensus.as_outcomes(merge)).value) == exact_text(merge.value)


@given(polls(), votes())
@settings(deadline=None, max_examples=150)
@pytest.mark.slow
def test_an_honest_consensus_passes_its_audit(consensus: Consensus, said: list[Outcome]) -> None:
    """What a consensus returns has no violation, whoever it says it is."""
    merge = consensus.merge([], said)
    assert audit(merge, said, [], consensus) == ()
    assert audit(merge, said, []) == ()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "weighted", "dawid_skene"])
def test_what_is_learned_keeps_the_laws(method: str) -> None:
    """A consensus that learns about the agents keeps the laws, for answers of every kind."""

    @given(st.data(), votes())
    @settings(deadline=None, max_examples=6)
    def kept(data: st.DataObject, said: list[Outcome]) -> None:
        consensus = Consensus.model_validate({"method": method})
        merge = consensus.merge([], said)
        assert consensus.merge([], data.draw(st.permutations(said))).model_dump_json() == merge.model_dump_json()
        assert audit(merge, said, [], consensus) == ()

    kept()


@given(polls(), votes())
@SURE
def test_every_item_with_an_answer_has_one_entry(consensus: Consensus, said: list[Outcome]) -> None:
    """An item is answered or undecided if anybody answered, and a gap for each that didn't."""
    value = cast("dict[str, list[dict[str, Any]]]", consensus.merge([], said).value)
    answered = {outcome.item for outcome in said if outcome.status == "succeeded"}
    assert sorted(entry["item"] for entry in (*value["answers"], *value["undecided"])) == sorted(answered)
    assert len(value["gaps"]) == sum(outcome.status != "succeeded" for outcome in said)


@given(polls(), votes())
@SURE
def test_inputs_are_left_alone(consensus: Consensus, said: list[Outcome]) -> None:
    """A consensus changes none of the answers that it is given."""
    before = [outcome.model_dump_json() for outcome in said]
    consensus.merge([], said)
    assert [outcome.model_dump_json() for outcome in said] == before


def _entry(data: st.DataObject, merge: Merge) -> tuple[dict[str, Any], str, int]:
    """Return a copy of the value, and a list and a place in it."""
    value = cast("dict[str, Any]", merge.model_copy(deep=True).value)
    places = [(name, at) for name in ("answers", "undecided") for at in range(len(value[name]))]
    assume(places)
    return (value, *data.draw(st.sampled_from(places)))


def drop_entry(data: st.DataObject, merge: Merge) -> Merge:
    """Forget an item, with all rows that are about it."""
    value, name, at = _entry(data, merge)
    del value[name][at]
    rows: list[FieldRow] = []
    for row in merge.fields:
        _, where, place, *rest = row.path.split("/")
        if where != name or int(place) != at:
            moved = int(place) - (where == name and int(place) > at)
            rows.append(row.model_copy(update={"path": "/".join(["", where, str(moved), *rest])}))
    return merge.model_copy(update={"value": value, "fields": tuple(rows)})


def rename_item(data: st.DataObject, merge: Merge) -> Merge:
    """Give an answer to another item."""
    value, name, at = _entry(data, merge)
    value[name][at]["item"] = "item 9"
    return merge.model_copy(update={"value": value})


def swap_items(data: st.DataObject, merge: Merge) -> Merge:
    """Give two answers to each other's items, wherever they differ."""
    value, name, at = _entry(data, merge)
    other = data.draw(st.sampled_from(range(len(value[name]))))
    assume(content_text(value[name][at]["value"]) != content_text(value[name][other]["value"]))
    value[name][at]["item"], value[name][other]["item"] = value[name][other]["item"], value[name][at]["item"]
    return merge.model_copy(update={"value": value})


def declare_decided(data: st.DataObject, merge: Merge) -> Merge:
    """List an undecided item among the answers."""
    value = cast("dict[str, Any]", merge.model_copy(deep=True).value)
    assume(value["undecided"])
    at, to = len(value["undecided"]) - 1, len(value["answers"])
    value["answers"].append(value["undecided"].pop())
    rows = [
        row.model_copy(update={"path": row.path.replace(f"/undecided/{at}/", f"/answers/{to}/", 1)})
        for row in merge.fields
    ]
    return merge.model_copy(update={"value": value, "fields": tuple(rows)})


def elect_a_loser(data: st.DataObject, merge: Merge) -> Merge:
    """Let a value stand that was outvoted, and call the winner a loser."""
    rows = [row for row in merge.fields if row.rule in ("majority", "consensus:mean") and row.losers]
    assume(rows)
    row = data.draw(st.sampled_from(rows))
    loser = data.draw(st.sampled_from(row.losers))
    bent = row.model_copy(update={"winner": loser.value, "sources": loser.sources})
    return _with_row(merge, row, bent)


def compute_something_else(data: st.DataObject, merge: Merge) -> Merge:
    """Put another number where one was computed."""
    rows = [row for row in merge.fields if row.rule.startswith("consensus:")]
    assume(rows)
    row = data.draw(st.sampled_from(rows))
    other: JsonValue = ["z"] if isinstance(row.winner, list) else -12345.5
    return _with_row(merge, row, row.model_copy(update={"winner": other}))


def forget_a_voter(data: st.DataObject, merge: Merge) -> Merge:
    """Leave an agent out of a row."""
    rows = [row for row in merge.fields if len(row.sources) > 1]
    assume(rows)
    row = data.draw(st.sampled_from(rows))
    gone = data.draw(st.sampled_from(row.sources))
    assume(not any(gone in loser.sources for loser in row.losers))
    left = tuple(source for source in row.sources if source != gone)
    return _with_row(merge, row, row.model_copy(update={"sources": left}))


def invent_a_voter(data: st.DataObject, merge: Merge) -> Merge:
    """Let an agent have voted that doesn't exist, or about something else."""
    assume(merge.fields)
    row = data.draw(st.sampled_from(merge.fields))
    ref = Ref(brief="agent-9", item=row.sources[0].item)
    return _with_row(merge, row, row.model_copy(update={"sources": (*row.sources, ref)}))


def drop_row(data: st.DataObject, merge: Merge) -> Merge:
    """Leave a field untraced."""
    assume(merge.fields)
    gone = data.draw(st.sampled_from(merge.fields))
    return merge.model_copy(update={"fields": tuple(row for row in merge.fields if row is not gone)})


def drop_gap(data: st.DataObject, merge: Merge) -> Merge:
    """Hide that an agent has no answer."""
    value = cast("dict[str, Any]", merge.model_copy(deep=True).value)
    assume(value["gaps"])
    value["gaps"].pop(data.draw(st.sampled_from(range(len(value["gaps"])))))
    return merge.model_copy(update={"value": value})


def _with_row(merge: Merge, row: FieldRow, bent: FieldRow) -> Merge:
    """Return a merge with another row, and what it says standing in the value."""
    value: Any = merge.model_copy(deep=True).value
    *way, last = [token.replace("~1", "/").replace("~0", "~") for token in row.path.split("/")[1:]]
    _set(value, way, last, bent.winner)
    fields = tuple(bent if other is row else other for other in merge.fields)
    return merge.model_copy(update={"value": value, "fields": fields})


def _set(here: Any, way: Sequence[str], last: str, winner: JsonValue) -> None:  # noqa: ANN401 -- JSON, walked through
    """Set what stands at a path; no list stands but that of the entries."""
    if not way:
        here[last] = winner
    else:
        _set(here[way[0] if hasattr(here, "keys") else int(way[0])], way[1:], last, winner)


MUTATIONS = [
    drop_entry,
    rename_item,
    swap_items,
    declare_decided,
    elect_a_loser,
    compute_something_else,
    forget_a_voter,
    invent_a_voter,
    drop_row,
    drop_gap,
]


@pytest.mark.slow
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_no_tampering_passes_the_audit(mutate: Callable[[st.DataObject, Merge], Merge]) -> None:
    """A consensus in which anything was dropped, invented or counted wrongly is found out, without merging again."""

    @given(st.data(), polls(), votes())
    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])  # some seldom bend
    def found_out(data: st.DataObject, consensus: Consensus, said: list[Outcome]) -> None:
        merge = consensus.merge([], said)
        bent = mutate(data, merge)
        assume(bent != merge)
        assert audit(bent, said, [], consensus, again=lambda _: bent) != ()

    found_out()
