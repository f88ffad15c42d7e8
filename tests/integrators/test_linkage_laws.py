"""The laws, for records that are linked though spelt differently, by likeness and by decision."""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.audit.coverage import Trace
from prefect_dispatch.integrators.merge_records.linkage import is_contradiction
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.merge_records.similarity import prepare_value
from prefect_dispatch.models.ledger import FieldRow, Loser, Merge, Ref
from prefect_dispatch.serialization.json_values import exact_text
from tests.integrators.links import ANSWERS, linkers
from tests.integrators.said import entries, say
from tests.integrators.strategies import outcomes
from tests.integrators.test_laws import MUTATIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Outcome

SURE = settings(deadline=None, max_examples=100)
SAID = outcomes(ANSWERS)


@given(st.data(), linkers(), SAID)
@SURE
def test_order_does_not_matter(data: st.DataObject, integrator: MergeRecords, said: list[Outcome]) -> None:
    """However the outcomes are shuffled, value, rows, links and proposals are the same, byte for byte."""
    shuffled = data.draw(st.permutations(said))
    assert integrator.merge([], shuffled).model_dump_json() == integrator.merge([], said).model_dump_json()


@given(linkers(), SAID)
@SURE
@pytest.mark.slow
def test_an_honest_merge_passes_its_audit(integrator: MergeRecords, said: list[Outcome]) -> None:
    """Nothing is lost or invented by linking; the merged value, taken in again, is the same value."""
    assert audit(integrator.merge([], said), said, [], integrator) == ()


@given(linkers(evidence=False), SAID)
@SURE
def test_merging_twice_changes_nothing(integrator: MergeRecords, said: list[Outcome]) -> None:
    """What was merged, taken in again with the spellings that were linked, is the same value, byte for byte."""
    merge = integrator.merge([], said)
    restated = integrator.as_outcomes(merge)
    assert restated is not None
    assert exact_text(integrator.merge([], restated).value) == exact_text(merge.value)


VALUES: dict[str, list[Any]] = {
    "born": [None, 1950, "1950", "1950-05-01", "1 July 1950", 1999, "-"],
    "city": [None, "", "Rome", "rome", "Roma Antica", "Oslo", ["x"]],
}
PEOPLE: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["John Smith", "john smith", "Jonn Smith", "Johm Smith", "Ada"])},
        optional={"born": st.sampled_from(VALUES["born"]), "city": st.sampled_from(VALUES["city"])},
    ),
    max_size=7,
)


@given(st.data(), PEOPLE)
@SURE
def test_contradicting_records_are_never_one(data: st.DataObject, people: list[dict[str, Any]]) -> None:
    """However records are linked, no merged one has two that contradict each other in a compared field.

    What belongs to one identity and was kept apart for that is connected by proposals, and order doesn't matter.
    """
    fields = ("born", "city")
    integrator = MergeRecords.model_validate(
        {"identity": ["name"], "rules": {"from": "union"}, "match": {"fields": fields, "sure": 0.9}}
    )
    said = [say(f"{at}", {**person, "from": [at]}) for at, person in enumerate(people)]
    merge = integrator.merge([], data.draw(st.permutations(said)))
    assert merge == integrator.merge([], said)
    assert audit(merge, said, [], integrator) == ()
    records: Any = entries(merge)
    sets: list[list[int]] = [record["from"] for record in records]
    assert sorted(at for each in sets for at in each) == list(range(len(people)))
    for one, other in (pair for each in sets for pair in combinations(each, 2)):
        for field in fields:
            values: list[Any] = [people[at].get(field) for at in (one, other)]
            a, b = map(prepare_value, values)
            assert any(value in (None, "", "-") for value in values) or not is_contradiction(a, b)
    joined = [{*each} for each in sets] + [
        {int(ref.item) for ref in (*each.left_sources, *each.right_sources)} for each in merge.proposals
    ]
    for name in {person["name"].casefold() for person in people}:
        reached = {next(at for at, person in enumerate(people) if person["name"].casefold() == name)}
        for _ in people:
            reached |= {at for each in joined if each & reached for at in each}
        assert {at for at, person in enumerate(people) if person["name"].casefold() == name} <= reached


@pytest.mark.parametrize(
    ("one", "other", "records"),
    [
        ("1999-05-05", "1999-05-07", 2),
        ("1950-03-04", "1950-04-03", 2),
        ("5 May 1950", "5 June 1950", 2),
        ("1950-05", "1950-05-07", 1),
        (1950, "5 May 1950", 1),
        ("12 12", "12 5", 2),
        ("12 5", "5 Main Street 12", 1),
    ],
)
def test_numbers_that_occur_in_another_order_or_number_are_others(
    one: JsonValue, other: JsonValue, records: int
) -> None:
    """Two people born on 5 and 7 May, or on 4 March and 3 April, are two, even if the same digits stand in both."""
    merge = MergeRecords.model_validate({"identity": ["name"], "match": {"fields": ["born"]}}).merge(
        [], [say("a", {"name": "John Smith", "born": one}), say("b", {"name": "John Smith", "born": other})]
    )
    merged: Any = entries(merge)
    assert (len(merged), len(merge.proposals)) == (records, records - 1)


@pytest.mark.slow
@given(linkers(), SAID)
@SURE
def test_what_must_not_be_one_never_is(integrator: MergeRecords, said: list[Outcome]) -> None:
    """Identities that were decided to differ never end in one set, not even by way of a third, nor are proposed."""
    gathered = integrator.scopes(sorted(said, key=lambda outcome: Ref.of(outcome).order))
    proposed = {frozenset((each.left, each.right)) for each in gathered.linkage.proposals}
    for pair in integrator.decisions.different:
        for left, right in product(*map(gathered.keys_of, pair)):
            if left != right:
                head = gathered.linkage.head
                assert left not in gathered.linkage.heads or head(left) != head(right)
                assert frozenset((left, right)) not in proposed


@pytest.mark.slow
@given(linkers(), SAID)
@SURE
def test_what_is_one_is_not_proposed(integrator: MergeRecords, said: list[Outcome]) -> None:
    """Of two sets of identities one pair is proposed at most, and no pair within one; all links are sure or decided."""
    gathered = integrator.scopes(sorted(said, key=lambda outcome: Ref.of(outcome).order))
    linked = gathered.linkage
    ends = [frozenset((linked.head(each.left), linked.head(each.right))) for each in linked.proposals]
    assert all(len(pair) > 1 for pair in ends)
    assert len(ends) == len(set(ends))
    for each in linked.links:
        assert each.is_decided or (integrator.match and each.score >= integrator.match.sure)
    joined = {key for each in linked.links for key in (each.left, each.right)}
    assert joined == set(linked.heads)


def drop_link(data: st.DataObject, merge: Merge) -> Merge:
    """Hide by what records were linked."""
    assume(any(table.name == "links" for table in merge.tables))
    tables = tuple(table for table in merge.tables if table.name != "links")
    return merge.model_copy(update={"tables": tables})


def drop_proposal(data: st.DataObject, merge: Merge) -> Merge:
    """Hide a pair that somebody should decide on."""
    assume(merge.proposals)
    gone = data.draw(st.sampled_from(range(len(merge.proposals))))
    return merge.model_copy(update={"proposals": merge.proposals[:gone] + merge.proposals[gone + 1 :]})


def fuse_records(data: st.DataObject, merge: Merge) -> Merge:
    """Make one record of two, rows and all, as if they had been linked."""
    value: Any = merge.value
    records = value["records"]
    pairs = [
        (one, other)
        for one, other in combinations(range(len(records)), 2)
        if isinstance(records[one], dict) and isinstance(records[other], dict) and records[one] != records[other]
    ]
    assume(pairs)
    one, other = data.draw(st.sampled_from(pairs))
    rows: dict[str, FieldRow] = {}
    for row in sorted(merge.fields, key=lambda row: row.path.split("/")[2] != str(one)):
        _, _, at, *rest = row.path.split("/")
        place = one if int(at) == other else int(at)
        path = "/".join(["", "records", str(place - (place > other)), *rest])
        rows[path] = _also(rows[path], row) if path in rows else row.model_copy(update={"path": path})
    left = [{**records[other], **each} if at == one else each for at, each in enumerate(records) if at != other]
    return merge.model_copy(update={"value": {**value, "records": left}, "fields": tuple(rows.values())})


def _also(row: FieldRow, other: FieldRow) -> FieldRow:
    """Return a row that names what another one says among what its rule removed, all of it properly sourced."""
    removed = Loser(value=other.winner, sources=other.sources)
    return row.model_copy(update={"losers": (*row.losers, removed, *other.losers)})


@pytest.mark.slow
@given(st.data(), linkers(), SAID)
@SURE
def test_a_false_fusion_is_found_by_tracing_alone(
    data: st.DataObject, integrator: MergeRecords, said: list[Outcome]
) -> None:
    """Two records made one, all values and sources in place, differ from what the answers' identities say."""
    merge = integrator.merge([], said)
    assert [*Trace(fuse_records(data, merge), said, integrator).violations()]


@pytest.mark.slow
@given(st.data(), st.sampled_from([*MUTATIONS, drop_link, drop_proposal, fuse_records]), linkers(), SAID)
@settings(deadline=None, max_examples=100)
def test_no_tampering_passes_the_audit(
    data: st.DataObject,
    mutate: Callable[[st.DataObject, Merge], Merge],
    integrator: MergeRecords,
    said: list[Outcome],
) -> None:
    """Where records were linked, too, whatever was dropped, repeated, invented, bent or fused is found out."""
    merge = integrator.merge([], said)
    bent = mutate(data, merge)
    assume(bent != merge)
    assert audit(bent, said, [], integrator)
