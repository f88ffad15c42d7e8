"""Records matched by a model that learns from them, without labels."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.merge_records.learned_matches import fit, link_sets
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.merge_records.similarity import Matching
from prefect_dispatch.models.decisions import Decisions
from tests.integrators.said import entries, say

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

Record = dict[str, Any]
SYLLABLES = [first + vowel for first in "bdfgklmnprstvw" for vowel in "aeiou"]
PLACES = ["Leeds", "Bath", "York", "Derby", "Oxford", "Truro", "Wells", "Ripon"]


def word(chance: random.Random, syllables: int = 3) -> str:
    """Return a made-up word."""
    return "".join(chance.choice(SYLLABLES) for _ in range(syllables))


def misspell(text: str, chance: random.Random) -> str:
    """Return a text with one letter replaced."""
    at = chance.randrange(len(text))
    return text[:at] + chance.choice("aeioubdfg") + text[at + 1 :]


def people(count: int, seed: int = 1) -> tuple[list[Record], list[int]]:
    """Return records of people, half of them a second time with a misspelt name or a missing field; and who each is."""
    chance = random.Random(seed)
    records: list[Record] = []
    entity: list[int] = []
    for number in range(count):
        first, last = word(chance), word(chance)
        record = {
            "first": first,
            "last": last,
            "town": chance.choice(PLACES),
            "born": f"{chance.randrange(1930, 2000)}-{chance.randrange(1, 13):02}-{chance.randrange(1, 29):02}",
        }
        records.append(record)
        entity.append(number)
        if number % 2:
            again: Record = {**record, "last": misspell(last, chance)}
            again[chance.choice(["first", "town"])] = chance.choice([None, ""])
            records.append(again)
            entity.append(number)
    return records, entity


def integrator(decided: dict[str, Any] | None = None, **options: Any) -> MergeRecords:  # noqa: ANN401 -- any option
    """Return an integrator that learns."""
    given_options = {"identity": ["first", "last"], "match": {"model": "learned"}, **options}
    return MergeRecords.model_validate(given_options).with_decisions(Decisions.model_validate(decided or {}))


def say_all(records: list[Record]) -> list[Outcome]:
    """Return an answer for each record."""
    return [say(f"{at}", record) for at, record in enumerate(records)]


def merged(records: list[Record], merger: MergeRecords | None = None) -> Merge:
    """Return an audited merge."""
    merger, said = merger or integrator(), say_all(records)
    merge = merger.merge([], said)
    assert audit(merge, said, [], merger) == ()
    return merge


def sets(records: list[Record], merger: MergeRecords | None = None) -> list[list[int]]:
    """Return which records became one."""
    groups = (merger or integrator()).scopes(say_all(records)).groups()
    return sorted(sorted({int(part.source.item) for part in group.parts}) for group in groups)


def pairs(groups: list[list[int]]) -> set[tuple[int, int]]:
    """Return the pairs of what became one."""
    return {pair for group in groups for pair in combinations(group, 2)}


def test_misspelt_and_incomplete_records_are_found() -> None:
    """Without labels or thresholds: a misspelt name and a missing part of the identity are no obstacle."""
    records, entity = people(120)
    merge = merged(records)
    true = {(a, b) for a, b in combinations(range(len(records)), 2) if entity[a] == entity[b]}
    found = pairs(sets(records))
    assert len(found & true) >= 0.95 * len(true)
    assert len(found & true) >= 0.98 * len(found)
    assert len(entries(merge)) == len(sets(records))
    assert all("all words" in str(row["why"]) for row in merge.tables[0].rows)
    assert "learned from all compared pairs, without labels" in merge.rules
    assert "'born', 'town', all words together" in merge.rules


def test_three_of_one_are_one() -> None:
    """More than two records of one person become one, though each is the most similar to only one other."""
    records, _ = people(60)
    last, more = records[0]["last"], [{**records[0], "last": records[0]["last"][:-1] + letter} for letter in "xyz"]
    assert last
    assert [0, *range(len(records), len(records) + 3)] in sets([*records, *more])


def test_equal_names_are_evidence_alone() -> None:
    """Two people of one name who differ in all else stay two, and the rules say so; those who agree are one."""
    records, _ = people(80)
    name = {"first": "John", "last": "Smith"}
    one, other = {**name, "town": "Leeds", "born": "1950-01-31"}, {**name, "town": "Bath", "born": "1999-12-01"}
    merge = merged([*records, one, other, {**one, "town": "LEEDS"}])
    found = sets([*records, one, other, {**one, "town": "Leeds", "born": "31 January 1950"}])
    count = len(records)
    assert [count, count + 2] in found
    assert [count + 1] in found
    assert "Of 1 of the identities records stayed apart, although they are equal" in merge.rules


def test_decisions_hold() -> None:
    """People overrule the model: what they separate stays apart, what they join is one, by the compared fields."""
    records, _ = people(40)
    first, second = next(pair for pair in sorted(pairs(sets(records))))
    spelt = [
        {**{name: records[at].get(name) for name in ("first", "last")}, "town": records[at]["town"]}
        for at in (first, second)
    ]
    assert [first, second] not in sets(records, integrator({"different": [spelt]}))
    far = len(records) - 1
    both = [{name: records[at].get(name) for name in ("first", "last", "born")} for at in (0, far)]
    assert any({0, far} <= {*each} for each in sets(records, integrator({"same": [both]})))
    merged(records, integrator({"same": [both], "different": [spelt]}))


def test_a_value_in_the_wrong_field_counts() -> None:
    """What stands in another field is compared, too, as a part of all words."""
    records, _ = people(80)
    moved = {"first": records[0]["first"], "last": f"{records[0]['last']} {records[0]['town']} {records[0]['born']}"}
    assert [0, len(records)] in sets([*records, moved])


def test_lists_are_compared_by_their_elements() -> None:
    """A list counts as its words; named fields are compared alone."""
    chance = random.Random(4)
    books: list[Record] = [
        {"title": " ".join(word(chance) for _ in range(4)), "authors": [word(chance), word(chance)], "id": f"a{at}"}
        for at in range(60)
    ]
    again = [{**book, "title": misspell(book["title"], chance), "id": f"b{at}"} for at, book in enumerate(books[:30])]
    merger = integrator(identity=["title"], match={"model": "learned", "fields": ["authors"]})
    assert pairs(sets([*books, *again], merger)) == {(at, 60 + at) for at in range(30)}
    assert "'id'" not in merged([*books, *again], merger).rules


def test_items_are_kept_apart() -> None:
    """With the item's key in the identity, only records about one item are compared; nothing else names them."""
    records, _ = people(20)
    merger = integrator(identity=["{key}", "first"])
    assert len(sets(records, merger)) == len(records)
    unnamed = [*records, {"town": "Leeds"}, {"first": "", "last": None, "town": "Bath"}]
    assert len(entries(merged(unnamed, merger))) == len(unnamed)
    assert len(entries(merged(unnamed))) == len(sets(unnamed))


@pytest.mark.parametrize("records", [[], [{"first": "Ann", "last": "Lee"}], [{"first": "?", "last": "!"}] * 2])
def test_little_is_enough(records: list[Record]) -> None:
    """No record, one, or two without a word are no problem."""
    assert len(entries(merged(records))) == len({str(record) for record in records})


def test_few_records_are_judged_by_what_is_usual() -> None:
    """Before anything is learned, agreement speaks for a match and contradiction against it."""
    ann = {"first": "Ann", "last": "Lee", "town": "Leeds", "born": "1950-01-31"}
    assert sets([ann, {**ann, "last": "LEE", "note": None}]) == [[0, 1]]
    assert sets([ann, {**ann, "town": "Bath", "born": "1999-12-01"}]) == [[0], [1]]


RECORDS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "first": st.sampled_from(["Ann", "Anne", "Bob", "", None, 7]),
            "last": st.sampled_from(["Lee", "Leigh", "O'Neil", "ONeil", None]),
            "born": st.sampled_from([1950, "1950-01-31", "1999", None]),
            "tags": st.lists(st.sampled_from(["x", "y"]), max_size=2),
            "a.b": st.sampled_from([1, 2]),
        },
    )
    | st.integers(0, 2),
    max_size=8,
)


@given(st.data(), RECORDS, st.sampled_from([["first"], ["first", "last"], ["{key}", "first"]]))
@settings(deadline=None, max_examples=150)
def test_the_laws_hold(data: st.DataObject, records: list[JsonValue], identity: list[str]) -> None:
    """In any order the merge is the same, byte for byte; nothing is lost or invented, and the audit agrees."""
    fields = data.draw(st.sampled_from([[], ["born"], ["born", "tags"]]))
    merger = integrator(identity=identity, match={"model": "learned", "sure": 0.6, "fields": fields})
    said = [say(f"{at}", record) for at, record in enumerate(records)]
    merge = merger.merge([], said)
    assert merger.merge([], data.draw(st.permutations(said))).model_dump_json() == merge.model_dump_json()
    assert audit(merge, said, [], merger) == ()
    assert merger.as_outcomes(merge) is None


SCRIPT = """
from tests.integrators.test_learned_matches import integrator, people, say_all
print(integrator().merge([], say_all(people(40)[0])).model_dump_json())
"""


@pytest.mark.slow
def test_another_process_computes_the_same() -> None:
    """The order of Python's sets, which differs between processes, changes no byte."""
    found = {
        subprocess.run(  # noqa: S603 -- this test
            [sys.executable, "-c", SCRIPT], check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_thresholds_are_probabilities() -> None:
    """By default a pair is proposed that is rather the same than not; wrong values are refused by name."""
    assert (Matching(model="learned").sure, Matching(model="learned").propose) == (0.95, 0.5)
    assert Matching(model="learned", sure=0.4).propose == 0.4
    assert Matching(model="learned", propose=0.7).propose == 0.7
    with pytest.raises(ValidationError, match="valid dictionary"):
        Matching.model_validate("learned")
    assert Matching().propose == 0.85
    with pytest.raises(ValidationError, match=r"model"):
        MergeRecords.model_validate({"identity": ["a"], "match": {"model": "splink"}})


def test_a_set_takes_in_what_most_of_it_fits() -> None:
    """A pair that is sure by itself joins no sets that differ otherwise: the probability of all pairs counts."""
    probability = {(0, 1): 0.99, (2, 3): 0.99, (1, 2): 0.96, (0, 2): 0.1, (1, 3): 0.1}
    ordered = [(0, 1), (2, 3), (1, 2)]
    assert link_sets(ordered, probability) == {(0, 1), (2, 3)}
    assert link_sets(ordered, {**probability, (0, 2): 0.9, (1, 3): 0.9}) == {*ordered}


def test_learning_ends_after_a_number_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not settled by then is used as it is."""
    patterns: dict[tuple[bool, tuple[int, ...]], int] = {(True, (5, 5)): 50, (True, (0, 1)): 450}
    settled = fit(patterns)
    monkeypatch.setattr("prefect_dispatch.integrators.merge_records.learned_matches._ROUNDS", 1)
    first = fit(patterns)
    assert [*first] == [*settled]
    assert first != settled


def test_a_word_is_like_one_word_of_the_other_record_only() -> None:
    """Two misspellings beside one word: the more similar one counts, in either order of the records."""
    twice: Record = {"first": "Annika Annikka", "last": "Wong"}
    once: Record = {"first": "Annikaa", "last": "Wong"}
    merges = [merged(order, integrator()) for order in ([twice, once], [once, twice])]
    assert len({(len(entries(merge)), len(merge.proposals)) for merge in merges}) == 1


def test_a_model_learns_what_tells() -> None:
    """A column that often agrees by chance says less than one that agrees in matches alone."""
    found = fit({(True, (5, 5)): 45, (True, (5, 0)): 5, (False, (0, 5)): 300, (False, (0, 0)): 300})
    assert found[5, 5] > 0.8
    assert found[0, 5] < found[5, 0] < 0.5
    assert fit({}) == {}
