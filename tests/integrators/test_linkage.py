"""Linking records: which pairs are compared, which become one, which are proposed, and what people decide."""

from __future__ import annotations

import random
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.base import DecisionIntegrator
from prefect_dispatch.integrators.merge_records.linkage import (
    MOST_VECTORS,
    WINDOW,
    Blocks,
    ComparableIdentity,
    link_identities,
)
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.merge_records.similarity import Matching, compare_texts, prepare_text
from prefect_dispatch.integrators.run_merge import prepare_integrator
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.decisions import Decisions
from tests.integrators.said import entries, miss, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome


def merged(said: Sequence[Outcome], decided: dict[str, Any] | None = None, **options: object) -> Merge:
    """Return an audited merge."""
    integrator = MergeRecords.model_validate({"identity": ["name"], "match": {}, **options})
    integrator = integrator.with_decisions(Decisions.model_validate(decided or {}))
    merge = integrator.merge([], said)
    assert audit(merge, said, [], integrator) == ()
    return merge


def named(*names: JsonValue) -> list[Outcome]:
    """Return answers that name one record each, and say which answer it is."""
    return [say(f"{at}", {"name": name, "from": [at]}) for at, name in enumerate(names)]


def sets(merge: Merge) -> list[list[int]]:
    """Return which answers became one record."""
    records: Any = entries(merge)
    return sorted(sorted(record["from"]) for record in records)


GATHER: dict[str, Any] = {"rules": {"from": "union"}}


def test_sure_pairs_become_one_and_say_why() -> None:
    """Records that are surely the same are one; the table of links has the score and what was compared."""
    merge = merged(named("M\u00fcller Verlag", "Muller Verlag", "MIT"), **GATHER)
    assert sets(merge) == [[0, 1], [2]]
    [table] = merge.tables
    assert (table.name, table.rows) == (
        "links",
        (
            {
                "left": {"name": "Muller Verlag"},
                "right": {"name": "M\u00fcller Verlag"},
                "score": 0.99,
                "why": "Alike: 'name' 0.99.",
            },
        ),
    )
    assert "at 0.95 or more of 1 they were taken for the same" in merge.rules


def test_likely_pairs_are_proposed_and_left_apart() -> None:
    """Below the sure threshold nothing is fused: the pair is proposed, with who names whom."""
    merge = merged([*named("Mueller Verlag", "Muller Verlag"), say("2", {"name": "muller verlag"})])
    [proposal] = merge.proposals
    assert (proposal.left, proposal.right) == ({"name": "Mueller Verlag"}, {"name": "Muller Verlag"})
    assert (proposal.score, proposal.why) == (0.9257, "Alike: 'name' 0.9257.")
    assert [[*map(str, sources)] for sources in (proposal.left_sources, proposal.right_sources)] == [
        ["terms/0"],
        ["terms/1", "terms/2"],
    ]
    assert len(entries(merge)) == 2
    assert merge.tables == ()


def test_without_matching_only_equal_identities_are_the_same() -> None:
    """Nothing is compared, linked or proposed unless somebody asks for it."""
    merge = merged(named("M\u00fcller", "Muller"), match=None)
    assert (len(entries(merge)), merge.proposals, merge.tables) == (2, (), ())


def test_what_is_the_same_as_the_same_is_the_same() -> None:
    """Links reach from one to another: three spellings in a chain are one record, by two links."""
    chain = ("International Business Machines", "Internatonal Business Machines", "Internatonal Busines Machines")
    merge = merged(named(*chain), **GATHER)
    assert sets(merge) == [[0, 1, 2]]
    assert len(merge.tables[0].rows) == 2


def test_what_must_not_be_one_stays_apart_by_way_of_a_third_too() -> None:
    """A forbidden pair splits a chain at its weakest link."""
    chain = ("International Business Machines", "Internatonal Business Machines", "Internatonal Busines Machines")
    decided = {"different": [({"name": chain[0]}, {"name": chain[2]})]}
    merge = merged(named(*chain), decided, **GATHER)
    assert sets(merge) == [[0, 1], [2]]
    assert merge.proposals == ()


def test_what_was_decided_to_be_the_same_is_one_whatever_it_is_called() -> None:
    """Likeness doesn't matter where somebody knows, nor does how they spell it; no matching is needed."""
    decided = {"same": [({"name": "ibm"}, {"name": "INTERNATIONAL  Business Machines"})]}
    merge = merged(named("IBM", "International Business Machines"), decided, match=None, **GATHER)
    assert sets(merge) == [[0, 1]]
    assert merge.tables[0].rows[0]["why"] == "Decided to be the same."
    assert "1 pair became one because somebody decided so." in merge.rules


def test_decisions_that_contradict_one_another_keep_apart() -> None:
    """Where pairs that are the same would bring together what is not, the last of them is not followed, and told."""
    decided = {
        "same": [({"name": "a1"}, {"name": "b1"}), ({"name": "b1"}, {"name": "c1"})],
        "different": [({"name": "c1"}, {"name": "a1"})],
    }
    merge = merged(named("a1", "b1", "c1"), decided, **GATHER)
    assert sets(merge) == [[0, 1], [2]]
    assert (
        '1 pair decided to be the same stayed apart, because other decisions say so: {"name":"b1"} and' in merge.rules
    )


def test_a_decision_that_follows_from_others_adds_nothing() -> None:
    """Of three names that are the same, two decisions link all; a third one is no link of its own."""
    decided = {"same": [({"name": one}, {"name": other}) for one, other in combinations(("a1", "b1", "c1"), 2)]}
    merge = merged(named("a1", "b1", "c1"), decided, **GATHER)
    assert sets(merge) == [[0, 1, 2]]
    assert len(merge.tables[0].rows) == 2
    assert "2 pairs became one" in merge.rules


@pytest.mark.parametrize(
    "name",
    [
        pytest.param({"name": "nobody"}, id="no-such-record"),
        pytest.param({"nme": "MIT"}, id="no-such-field"),
        pytest.param({"name": "MIT", "year": 1}, id="a-field-too-many"),
        pytest.param({"name": ""}, id="blank"),
    ],
)
def test_a_decision_about_nobody_is_told(name: dict[str, JsonValue]) -> None:
    """A decision on a record that isn't there changes nothing, and is named; it may be of another run."""
    merge = merged(named("MIT"), {"same": [(name, {"name": "mit"})], "different": [(name, {"name": "MIT"})]})
    assert len(entries(merge)) == 1
    assert "Decided on, but named by no record: {" in merge.rules


def test_many_unknown_decisions_are_summed_up() -> None:
    """Five are named, the rest is counted."""
    pairs = [({"name": f"x{at}"}, {"name": f"y{at}"}) for at in range(4)]
    assert "and 3 more." in merged(named("MIT"), {"same": pairs}).rules


def test_a_decision_on_one_and_the_same_record_is_none() -> None:
    """What is equal can't be kept apart: it is one record."""
    merge = merged(named("MIT", "mit"), {"different": [({"name": "MIT"}, {"name": "mit"})]}, **GATHER)
    assert sets(merge) == [[0, 1]]


def test_a_rule_may_choose_the_spelling() -> None:
    """Where one field makes the identity, its rule picks one of the spellings that were linked."""
    decided = {"same": [({"name": "IBM"}, {"name": "International Business Machines"})]}
    merge = merged(named("IBM", "International Business Machines"), decided, rules={"name": "longest"})
    records: Any = entries(merge)
    assert [record["name"] for record in records] == ["International Business Machines"]


def test_somebody_may_choose_the_spelling() -> None:
    """A chosen value of an identity of one field stands, where some record says it."""
    pair = ({"name": "IBM"}, {"name": "International Business Machines"})
    decided = {
        "same": [pair],
        "fields": [{"record": pair[0], "field": "name", "value": "International Business Machines"}],
    }
    records: Any = entries(merged(named("IBM", "International Business Machines"), decided))
    assert [record["name"] for record in records] == ["International Business Machines"]


def test_an_identity_of_several_fields_is_taken_from_one_record() -> None:
    """What was linked keeps an identity that some record has; a choice for a part of it is not followed."""
    said = [say("0", {"name": "Zo\u00eb", "city": "Leeds"}), say("1", {"name": "Zoe", "city": "leeds"})]
    choice = {"record": {"name": "zoe", "city": "leeds"}, "field": "name", "value": "Zo\u00eb"}
    records: Any = entries(merged(said, {"fields": [choice]}, identity=["name", "city"]))
    assert records in ([{"name": "Zo\u00eb", "city": "Leeds"}], [{"name": "Zoe", "city": "leeds"}])


def test_other_fields_may_tell() -> None:
    """A name a letter off is only likely; with an equal place and date beside it, it is sure."""
    said = [
        say("0", {"name": "Jonathan Smith", "city": "Leeds", "born": "1970-05-01"}),
        say("1", {"name": "Jonathon Smith", "city": "LEEDS", "born": "1 May 1970"}),
        say("2", {"name": "Jonathon Smiths", "city": "Bath", "born": None}),
    ]
    assert len(entries(merged(said))) == 3
    merge = merged(said, match={"fields": ["city", "born"]}, default="keep_all")
    assert [each["born"] for each in entries(merge) if isinstance(each, dict)] == [["1 May 1970", "1970-05-01"], None]
    assert "with 'city' and 'born' beside them" in merge.rules


# Records of one identity that contradict each other.

SMITHS: list[dict[str, JsonValue]] = [{"name": "John Smith", "born": 1950}, {"name": "john smith", "born": "1999"}]
BORN: dict[str, Any] = {"match": {"fields": ["born"]}, **GATHER}


def people(*records: dict[str, JsonValue]) -> list[Outcome]:
    """Return answers of one record each, which say which answer it is."""
    return [say(f"{at}", {**record, "from": [at]}) for at, record in enumerate(records)]


def test_options_of_matching_are_an_object() -> None:
    """Made by hand or from a job file; nothing else is."""
    assert Matching.model_validate(Matching(fields=("born",))) == Matching(fields=("born",))
    with pytest.raises(ValidationError, match="valid dictionary"):
        Matching.model_validate(3)


def test_equal_names_that_contradict_each_other_stay_apart() -> None:
    """Two John Smiths, born 1950 and 1999, are two records and a proposal that says what tells them apart."""
    merge = merged(people(*SMITHS, {"name": "JOHN SMITH", "born": "1 May 1950"}), **BORN)
    assert sets(merge) == [[0, 2], [1]]
    [proposal] = merge.proposals
    assert (proposal.left, proposal.right) == tuple(SMITHS)
    assert proposal.why == "Alike: 'name' 1, 'born' 0; but 'born' is '1950' or '1999'."
    assert "Records that contradict each other in 'born' are never one by that" in merge.rules
    assert sets(merged(people(*SMITHS), **GATHER)) == [[0, 1]]


def test_what_only_says_more_is_no_contradiction() -> None:
    """A list, a long text, or an abbreviation may differ and be about one person."""
    long = " ".join(f"Word{at}" for at in range(50))
    values: list[tuple[JsonValue, JsonValue]] = [
        (["a"], ["b"]),
        (long, f"{long} more"),
        ("Universit\u00e4t Kiel", "Uni Kiel"),
    ]
    for one, other in values:
        records: list[dict[str, JsonValue]] = [{"name": "Ann", "born": born} for born in (one, other)]
        assert sets(merged(people(*records), **BORN)) == [[0, 1]]


def test_what_may_belong_to_either_stays_alone() -> None:
    """A John Smith of unknown birth may be either one: he is neither, and proposed to be one of them."""
    merge = merged(people(*SMITHS, {"name": "John Smith", "born": None}), **BORN)
    assert sets(merge) == [[0], [1], [2]]
    assert [(each.left, each.why) for each in merge.proposals] == [
        (
            {"name": "John Smith", "born": None},
            "Alike: 'name' 1; but others of this identity contradict each other.",
        )
    ] * 2
    assert sets(merged(people(SMITHS[0], {"name": "John Smith"}), **BORN)) == [[0, 1]]


def test_contradicting_records_are_no_one_by_way_of_a_third() -> None:
    """A misspelt John Smith without a birth doesn't join two who were born in different years."""
    names = ("International Business Machines", "Internatonal Business Machines", "Internatonal Busines Machines")
    born = (1950, None, 1999)
    records: list[dict[str, JsonValue]] = [{"name": n, "born": b} for n, b in zip(names, born, strict=True)]
    merge = merged(people(*records), **BORN)
    assert sets(merge) == [[0], [1], [2]]
    assert len(merge.proposals) == 2


def test_evidence_in_a_chain_is_cut_at_its_weakest_link() -> None:
    """Where each step is sure and the ends contradict each other, the least similar pair is proposed instead."""
    names = [
        "International Business Machines Corporation of Armonk",
        "Internatonal Business Machines Corporation of Armonk",
        "Internatonal Busines Machines Corporation of Armonk",
        "Internatonal Busines Machnes Corporation of Armonk",
    ]
    born = (1950, None, None, 1999)
    records: list[dict[str, JsonValue]] = [{"name": n, "born": b} for n, b in zip(names, born, strict=True)]
    merge = merged(people(*records), match={"fields": ["born"], "sure": 0.97, "propose": 0.97}, **GATHER)
    assert len(sets(merge)) == 2
    assert len(merge.proposals) >= 1


def test_a_decision_names_the_field_that_tells_them_apart() -> None:
    """Equal names that contradict are one by decision, or kept out of the proposals; a name alone decides nothing."""
    pair = [{**SMITHS[0], "name": "JOHN  SMITH"}, SMITHS[1]]
    assert sets(merged(people(*SMITHS), {"same": [pair]}, **BORN)) == [[0, 1]]
    assert merged(people(*SMITHS), {"different": [pair]}, **BORN).proposals == ()
    other: dict[str, JsonValue] = {"name": "Jack Smith"}
    merge = merged(people(*SMITHS, other), {"same": [[{"name": "John Smith"}, other]]}, **BORN)
    assert sets(merge) == [[0], [1], [2]]
    assert 'decision has to name a compared field, too: {"name":"John Smith"}.' in merge.rules
    unknown = merged(people(*SMITHS), {"same": [[{"name": "John Smith", "born": 1951}, SMITHS[1]]]}, **BORN)
    assert 'Decided on, but named by no record: {"born":1951,"name":"John Smith"}.' in unknown.rules


def test_a_name_alone_is_different_from_another_for_all_who_have_it() -> None:
    """Who is decided to differ from a name differs from each record that has it."""
    other: dict[str, JsonValue] = {"name": "Jonn Smith"}
    found = merged(people(*SMITHS, other), {"different": [[{"name": "John Smith"}, other]]}, **BORN)
    assert all("Jonn" not in str((each.left, each.right)) for each in found.proposals)


def test_a_value_is_chosen_for_one_of_them() -> None:
    """A choice names its record by the compared field; by part of what is one record, too."""
    records: list[dict[str, JsonValue]] = [
        {**SMITHS[0], "town": "Rome"},
        {"name": "John Smith", "born": "1950-05-01", "town": "Oslo"},
        {**SMITHS[1], "town": "Bath"},
    ]
    for born in (1950, "1 May 1950"):
        choice = {"record": {"name": "John Smith", "born": born}, "field": "town", "value": "Oslo"}
        found: Any = entries(merged(people(*records), {"fields": [choice]}, **BORN))
        assert sorted(each["town"] for each in found) == ["Bath", "Oslo"]
    both = {"record": {"name": "John Smith", "town": None}, "field": "born", "value": 1950}
    merge = merged(
        people({**SMITHS[0], "town": "Rome"}, {"name": "John Smith", "born": 1950}, {**SMITHS[1], "town": "Bath"}),
        {"fields": [both]},
        match={"fields": ["born", "town"]},
        **GATHER,
    )
    assert sets(merge) == [[0, 1], [2]]
    assert "Chosen for what" not in merge.rules


@pytest.mark.slow
def test_very_many_of_one_name_are_told_apart_by_equal_values_alone() -> None:
    """Beyond some hundred different ones it takes an equal value to be one; what is compared stays bounded."""
    records: list[dict[str, JsonValue]] = [
        {"name": "John Smith", "born": f"{1000 + at}"} for at in range(MOST_VECTORS + 1) for _ in range(1 + (at < 2))
    ]
    merge = merged(people(*records, {"name": "John Smith", "born": "May 1000"}), **BORN)
    assert len(sets(merge)) == MOST_VECTORS + 2
    assert len(merge.proposals) <= MOST_VECTORS + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"match": {"sure": 0.8}}, "'propose' .0.85. is above 'sure' .0.8.", id="thresholds"),
        pytest.param({"match": {"sur": 0.8}}, "did you mean 'sure'", id="misspelt"),
        pytest.param({"identity": ["{kye}"]}, "'{kye}', which stands for nothing", id="placeholder"),
        pytest.param({"identity": ["name", "name"]}, "'identity' has 'name' twice", id="twice"),
        pytest.param({"identity": ["{key}", "key"]}, "'identity' has '{key}' twice", id="key-twice"),
        pytest.param({"identity": ["{key}"], "match": {}}, "'match' has nothing to compare", id="nothing-to-match"),
        pytest.param({"identity": ["{key}"], "rules": {"key": "max"}}, "'key' holds the item's key", id="rule-for-key"),
        pytest.param(
            {"identity": ["name", "city"], "match": {}, "rules": {"name": "longest"}},
            "field 'name' is, or holds, a part of the identity",
            id="mixed-identity",
        ),
        pytest.param(
            {"identity": ["meta.name"], "aliases": "a.yaml", "rules": {"meta": "max"}},
            "field 'meta' is, or holds, a part",
            id="around-the-identity",
        ),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    """An integrator that can't keep its promises is refused when it is made, with the way out."""
    with pytest.raises(ValidationError, match=message):
        MergeRecords.model_validate({"identity": ["name"], **options})


def test_compared_fields_are_looked_up_in_the_schema() -> None:
    """A misspelt field to compare is noticed before anything is spent."""
    brief = Brief.model_validate(
        {"name": "b", "instructions": "Read.", "output": {"properties": {"name": {}, "city": {}}}}
    )
    integrator = MergeRecords(identity=("name",), match=Matching(fields=("ctiy",)))
    with pytest.raises(JobError, match=r"'ctiy' is to be compared, but no .* did you mean 'city'"):
        integrator.preflight([brief])


def test_the_decisions_file_is_read_before_anything_is_spent(tmp_path: Path) -> None:
    """`aliases` is relative to the job's folder; no file yet means no decisions, a broken one is refused."""
    integrator = MergeRecords(identity=("name",), aliases="aliases.yaml")
    assert isinstance(integrator, DecisionIntegrator)
    unread = prepare_integrator(integrator, [], [], tmp_path)
    assert isinstance(unread, DecisionIntegrator)
    assert unread.decisions == Decisions()
    (tmp_path / "aliases.yaml").write_text("same: [[{name: IBM}, {name: Big Blue}]]\n")
    read = prepare_integrator(integrator, [], [], tmp_path)
    assert isinstance(read, MergeRecords)
    assert sets_of(read, named("IBM", "Big Blue")) == 1
    assert sets_of(integrator, named("IBM", "Big Blue")) == 2
    (tmp_path / "aliases.yaml").write_text("same: 1\n")
    with pytest.raises(JobError, match=r"decisions file 'aliases.yaml'"):
        prepare_integrator(integrator, [], [], tmp_path)


def sets_of(integrator: MergeRecords, said: list[Outcome]) -> int:
    """Return how many records there are."""
    return len(entries(integrator.merge([], said)))


def test_an_unreadable_gap_changes_nothing() -> None:
    """What has no answer names no record, linked or not."""
    merge = merged([*named("M\u00fcller", "Muller"), miss("9")], **GATHER)
    assert sets(merge) == [[0, 1]]
    assert merge.ledger[-1].disposition == "failed"


# Which pairs are compared.


def alphabet(texts: Sequence[str]) -> list[ComparableIdentity]:
    """Return identities."""
    return [ComparableIdentity((0, ((1, 0, text),)), "", {"name": prepare_text(text)}, {}) for text in texts]


def words(count: int, seed: int) -> list[str]:
    """Return made-up names of two words, a tenth of them with a letter changed."""
    chance = random.Random(seed)
    parts = ["".join(chance.choice("bdfgklmnprst") + chance.choice("aeiou") for _ in range(3)) for _ in range(60)]
    made = {f"{chance.choice(parts)} {chance.choice(parts)}" for _ in range(count)}
    bent = {text[:at] + "x" + text[at + 1 :] for text in sorted(made)[::10] for at in [chance.randrange(len(text))]}
    return sorted(made | bent)


@pytest.mark.slow
def test_blocking_finds_what_comparing_all_pairs_finds() -> None:
    """Of the pairs that comparing each with each would link or propose, blocking passes over hardly any."""
    names, matching = alphabet(words(600, seed=3)), Matching()
    linked = link_identities(names, matching)
    pairs = [*combinations(names, 2)]
    close = {
        (one.key, other.key)
        for one, other in pairs
        if compare_texts(one.texts["name"], other.texts["name"]).score >= matching.propose
    }
    found = Blocks([[*name.texts.values()] for name in names])
    met = {(names[other].key, names[at].key) for at, others in found.pairs() for other in others}
    assert len(close) > 90
    assert len(close & met) >= 0.97 * len(close)
    assert linked.comparisons < len(pairs) / 3


def test_comparisons_grow_with_the_number_of_records_not_its_square() -> None:
    """A text is compared with so many others at most, however many share its parts; what is passed over is told."""
    same = [
        prepare_text(f"common common {at:04}"[:-5] + f" {'abcdefghij'[at % 10]}{'klmnopqrst'[at // 10 % 10]}{at}")
        for at in range(2000)
    ]
    blocks = Blocks([[each] for each in same])
    counts = [len(others) for _, others in blocks.pairs()]
    assert max(counts) <= WINDOW * 28
    assert blocks.skipped_pairs > 0
    merge = merged([say("0", [{"name": f"Common Company Limited {at}"} for at in range(200)])])
    assert f"Where more than {WINDOW} share such a part" in merge.rules


def test_items_are_kept_apart_in_blocks() -> None:
    """Texts of different groups are never compared."""
    texts = [[prepare_text("same text")], [prepare_text("same text")], [prepare_text("same text")]]
    assert [others for _, others in Blocks(texts, ["a", "b", "a"]).pairs()] == [[], [], [0]]


def test_what_was_compared_once_is_remembered_for_a_while() -> None:
    """An audit asks the same again and gets the same; other questions get answers of their own."""
    said = named("M\u00fcller", "Muller", "Mueller")
    for propose in (0.85, 0.9, 0.95, 0.8, 0.7, 0.85):
        merge = merged(said, match={"propose": propose, "sure": 0.95})
        assert bool(merge.proposals) == (propose <= 0.85)
