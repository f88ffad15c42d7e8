"""An integrator that tells the same lie on every merge is found out, and an honest one is not accused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from benchmarks.merge_cases import CASES
from benchmarks.tampering import measure
from prefect_dispatch import Brief, Collate, Consensus, MergeBranches, MergeRecords, Synthesize, TestMatrix, Tournament
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.base import BaseIntegrator
from prefect_dispatch.models.ledger import Document, Flag, Merge, Table
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.models.test_run import TestCase, TestRun
from tests.integrators.judges import Bench, larger
from tests.integrators.repos import change_of, done, merging, repository
from tests.integrators.said import say
from tests.integrators.writers import Desk, scripted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import Violation

QUICK = ("collate", "merge_records", "merge_records, linked", "test_matrix", "tournament", "synthesize")
EVIDENCE = "it can't be recomputed from its evidence"


def lying(integrator: object, merge: Merge, said: Sequence[Outcome], briefs: Sequence[Brief] = ()) -> list[str]:
    """Return what the audit says if the integrator merges like this every time."""
    return [str(each) for each in audit(merge, said, briefs, integrator, again=lambda _: merge)]


def test_a_lie_on_every_merge_is_found() -> None:
    """Of lies of all kinds about merges without votes and repositories, 98 of 100 are found, and nobody is accused."""
    result = measure(240, QUICK, honest=60)
    found, told = result.rate()
    assert told == 240
    assert found / told >= 0.98, result.missed
    assert not result.accused


@pytest.mark.slow
def test_a_lie_about_votes_and_branches_is_found() -> None:
    """The same holds for votes and changes of a repository."""
    result = measure(60, [name for name in CASES if name not in QUICK], honest=9)
    found, told = result.rate()
    assert found / told >= 0.98, result.missed
    assert not result.accused


def test_a_class_that_derives_from_an_integrator_is_held_to_its_rules() -> None:
    """Unless it says otherwise: then it is audited like any integrator of a user's own."""

    class Shouting(Collate):
        def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
            return super().merge(briefs, outcomes).model_copy(update={"rules": "ALL KEPT!"})

    class Open(Shouting):
        def recompute(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Merge | None:
            return BaseIntegrator.recompute(self, merge, outcomes, briefs)

    said = [say("a", "x")]
    assert [str(each) for each in audit(Shouting().merge([], said), said, [], Shouting())] == [
        "precision at /: recomputed from the evidence, its 'rules' differs."
    ]
    assert audit(Open().merge([], said), said, [], Open()) == ()


def test_an_integer_is_no_float() -> None:
    """Numbers are compared with their types, in values, rows and tables; the order of keys is free."""
    said = [say("a", {"x": 1, "y": [True]})]
    merge = Collate().merge([], said)
    bent = merge.model_dump(mode="json")
    bent["value"]["answers"][0]["value"]["x"] = bent["fields"][0]["winner"]["x"] = 1.0
    found = lying(Collate(), Merge.model_validate(bent), said)
    assert "precision at /answers/0/value/x: recomputed from the evidence, it differs." in found
    assert "precision at /: recomputed from the evidence, its 'fields' differs." in found
    turned = merge.model_dump(mode="json")
    turned["fields"][0]["winner"] = {"y": [True], "x": 1}
    assert lying(Collate(), Merge.model_validate(turned), said) == []


def run(*cases: TestCase) -> JsonValue:
    """Return a test run."""
    data: JsonValue = TestRun(exit=0, cases=cases).model_dump(mode="json")
    return data


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2", "3"),
        ("<?xml", "<!-- fine --><?xml"),
        ("<testsuites", "<!DOCTYPE testsuites><testsuites"),
        ("</testsuites>", "<!-- all is well --></testsuites>"),
        ("</testsuites>", ""),
    ],
)
def test_a_bent_junit_report_is_found(old: str, new: str) -> None:
    """Whatever is written into the JUnit report that no test run says."""
    said = [say("a", run(TestCase(name="t", result="failed", message="1 is not 2", failures=("f",)))), say("b", run())]
    merge = TestMatrix().merge([], said)
    [document] = merge.documents
    changed = document.model_copy(update={"text": document.text.replace(old, new)})
    bent = merge.model_copy(update={"documents": (changed,)})
    assert audit(merge, said, [], TestMatrix()) == ()
    assert "precision at /: recomputed from the evidence, its 'documents' differs." in lying(TestMatrix(), bent, said)
    for documents in ((), (document.model_copy(update={"text": ""}),)):
        none = merge.model_copy(update={"documents": documents})
        assert "precision at /: recomputed from the evidence, its 'documents' differs." in lying(
            TestMatrix(), none, said
        )


@pytest.mark.slow
def test_large_matrices_are_computed_again() -> None:
    """What tables and messages leave out, the audit leaves out, too."""
    many = [TestCase(name=f"t{at}", result="passed", seconds=at % 3) for at in range(2_050)]
    red = [TestCase(name=f"r{at}", classname=f"c{at % 2}", suite=f"s{at}", result="failed") for at in range(5)]
    twins = [TestCase(name="t", classname="c", suite=suite, result="xfailed", message="m") for suite in ("one", "two")]
    named = [TestCase(name="t", suite=suite, result="flaky", tries=2) for suite in ("one", "two")]
    said = [say(f"e{at}", run(*many, *red, *twins, *named)) for at in range(7)]
    assert audit(TestMatrix().merge([], said), said, [], TestMatrix()) == ()
    for empty in ([], [say("test", run()), say("b", run(TestCase(name="t", result="skipped")))]):
        assert audit(TestMatrix().merge([], empty), empty, [], TestMatrix()) == ()


def asked(merge: Merge, desk: Desk | Bench) -> Merge:
    """Return a merge with the answers that its agent gave, as a run keeps them."""
    return merge.model_copy(update={"asked": tuple(desk([*desk.questions]))})


def test_a_text_that_no_model_wrote_is_found() -> None:
    """With the answers of the model at hand, a text that is none of them is a lie, however well it is cited."""
    said = [say("a", "It holds for 7 days."), say("b", "It holds for 8 days.")]
    writer = Synthesize(instructions="Write.", executor=scripted())
    desk = Desk(scripted())
    merge = writer.merge_asking([], said, desk)
    kept = asked(merge, desk)
    assert lying(writer, kept, said) == []
    bent = kept.model_copy(update={"value": str(kept.value).replace("It says It holds for 8 days", "So it is 8 days")})
    assert any("no answer of the writer says so" in each for each in lying(writer, bent, said))
    # Without them, only what follows from the text can be compared.
    assert not any(EVIDENCE in each for each in lying(writer, merge, said))
    for broken in ({"value": 5}, {"rules": "Somehow."}):
        assert any(EVIDENCE in each for each in lying(writer, merge.model_copy(update=broken), said))


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}


def test_a_value_that_no_model_wrote_is_found() -> None:
    """The same holds for a value by a schema."""
    said = [say("a", "It holds for 7 days."), say("b", "It holds for 8 days.")]
    answer: JsonValue = {"value": {"days": 7}, "sources": [{"path": "/days", "ids": [1]}]}
    desk = Desk(scripted(lambda _: answer))
    writer = Synthesize(instructions="Write.", output=SCHEMA, executor=scripted(lambda _: answer))
    merge = writer.merge_asking([], said, desk)
    kept = asked(merge, desk)
    assert lying(writer, kept, said) == []
    value = cast("dict[str, Any]", kept.value)
    bent = kept.model_copy(update={"value": {**value, "value": {"days": 8}, "cited": {"/value/days": [2]}}})
    assert any("no answer of the writer says so" in each for each in lying(writer, bent, said))
    values: list[JsonValue] = ["text", {**value, "cited": 5}, {**value, "value": []}]
    for broken in values:
        assert lying(writer, merge.model_copy(update={"value": broken}), said)


def test_a_verdict_that_no_judge_gave_is_found() -> None:
    """The table of claims must be about the claims, and have the verdicts of the judge."""
    said = [say("a", "It holds for 7 days.")]
    verdict: JsonValue = {"label": "contradicted", "sentence": "It holds for 7 days."}
    desk = Desk(scripted(lambda ask: verdict if ask.brief.name == "judge-claim" else "It holds for 7 days [1]."))
    writer = Synthesize(instructions="Write.", judge=desk.executor)
    merge = writer.merge_asking([], said, desk)
    kept = asked(merge, desk)
    assert lying(writer, kept, said) == []
    [table] = kept.tables
    [row] = table.rows
    messages = {
        "the judge answered something else": [{**row, "label": "supported"}],
        "the table of claims lacks one of them": [],
        "the table of claims has others, or is missing": [row, row],
    }
    for message, rows in messages.items():
        bent = kept.model_copy(update={"tables": (table.model_copy(update={"rows": tuple(rows)}),)})
        assert any(message in each for each in lying(writer, bent, said)), message
    assert any("lacks one of them" in each for each in lying(writer, kept.model_copy(update={"tables": ()}), said))


def test_a_verdict_of_no_possible_form_is_found() -> None:
    """Where the judge's answers weren't kept, a verdict must at least be one that a judge can give."""
    said = [say("a", "It holds for 7 days.")]
    judged: JsonValue = ""
    desk = Desk(scripted(lambda ask: judged if ask.brief.name == "judge-claim" else "It holds for 7 days [1]."))
    writer = Synthesize(instructions="Write.", judge=desk.executor)

    def merged(verdict: JsonValue) -> Merge:
        nonlocal judged
        judged = verdict
        return writer.merge_asking([], said, desk)

    def bend(merge: Merge, change: dict[str, str]) -> list[str]:
        [table] = merge.tables
        return lying(
            writer, merge.model_copy(update={"tables": (with_rows(table, [{**table.rows[0], **change}]),)}), said
        )

    message = "the table of claims has a verdict that no answer of a judge gives"
    decided = merged({"label": "supported", "sentence": "It holds for 7 days."})
    for change in ({"note": " "}, {"sentence": "It holds."}, {"label": "not_judged", "sentence": ""}):
        assert any(message in each for each in bend(decided, change)), change
    silent = merged({"label": "not_found", "sentence": ""})
    replaced = merged({"label": "contradicted", "sentence": "It holds."})
    unanswered = merged("no verdict")
    for merge in (decided, silent, replaced, unanswered):
        assert bend(merge, {}) == []
    for merge, change in (
        (silent, {"note": "so"}),
        (replaced, {"note": "it said 'so'"}),
        (unanswered, {"note": "a b"}),
    ):
        assert any(message in each for each in bend(merge, change)), change


def test_a_bent_sentence_on_the_wording_is_found() -> None:
    """A merge counts as one of an earlier version only if its description has no part of that sentence."""
    said = [say("a", "It holds for 7 days.")]
    writer = Synthesize(instructions="Write.")
    merge = writer.merge_asking([], said, Desk(scripted(lambda _: "It holds for 7 days [1].")))
    bent = merge.model_copy(update={"rules": merge.rules.replace("negations,", "no negations,")})
    assert bent != merge
    assert lying(writer, merge, said) == []
    assert lying(writer, bent, said) != []


def test_a_match_that_no_judge_decided_is_found() -> None:
    """With the judge's answers at hand, a verdict that follows from none of them is a lie."""
    said = [say("mug", value, brief=value) for value in ("a", "bb", "ccc")]
    tournament, bench = Tournament(criterion="Good."), Bench(larger)
    merge = tournament.merge_asking([], said, bench)
    kept = asked(merge, bench)
    assert lying(tournament, kept, said) == []
    tables = [table for table in kept.tables if table.name == "matches"]
    rows = [{**row, "reason_one_first": "It is bold."} for row in tables[0].rows]
    bent = kept.model_copy(
        update={"tables": tuple(each if each.name != "matches" else with_rows(each, rows) for each in kept.tables)}
    )
    assert any("the judge answered something else" in each for each in lying(tournament, bent, said))


def with_rows(table: Table, rows: Sequence[dict[str, JsonValue]]) -> Table:
    """Return a table with other rows."""
    return table.model_copy(update={"rows": tuple(rows)})


@pytest.mark.slow
def test_a_bent_review_of_branches_is_found(tmp_path: Path) -> None:
    """Tables, reasons and the review follow from the changes; the acceptance command's results are evidence."""
    git, base = repository(tmp_path, {"a.py": "1\n2\n3\n", "b.py": "1\n"})
    said = [
        done("one", change_of(git, base, {"a.py": "1\n2 by one\n3\n", "b.py": "1\n"})),
        done("two", change_of(git, base, {"a.py": "1\n2 by two\n3\n", "b.py": "2\n"})),
    ]
    briefs = [Brief(name=name, instructions=f"Do {name}.") for name in ("one", "two")]
    merger = merging(git, accept={"run": "true"})
    desk = Desk(scripted(lambda _: ""))
    merge = merger.merge_asking(briefs, said, desk)
    assert lying(merger, merge, said, briefs) == []
    assert merger.side_effects(say("unchanged", {})) is None
    review = Document(name="review.md", title="Other", text="All is well.")
    documents = tuple(review if each.name == "review.md" else each for each in merge.documents)
    differs = "precision at /: recomputed from the evidence, its 'documents' differs."
    assert differs in lying(merger, merge.model_copy(update={"documents": documents}), said, briefs)
    tables = tuple(each for each in merge.tables if each.name != "acceptance")
    assert any(EVIDENCE in each for each in lying(merger, merge.model_copy(update={"tables": tables}), said, briefs))
    # Without the briefs, commits can't be built again, nor where an agent was asked.
    assert differs not in lying(merger, merge.model_copy(update={"documents": documents}), said)
    agent = MergeBranches.model_validate({**merger.model_dump(), "on_conflict": "agent"})
    assert agent.recompute(merge, said, briefs) is None


def test_hidden_flags_and_choices_of_records_are_found() -> None:
    """A flag on a conflict can't be dropped, and none can be invented."""
    merger = MergeRecords.model_validate({"identity": ["n"], "conflicts": "flag"})
    said = [say("a", {"n": "x", "v": 1}), say("b", {"n": "x", "v": 2})]
    merge = merger.merge([], said)
    found: list[Violation] = [*audit(merge.model_copy(update={"flags": ()}), said, [], merger, again=lambda _: merge)]
    assert "recomputed from the evidence, its 'flags' differs." in [each.message for each in found]
    new = Flag(path="/records/0/n", kind="conflict", text="x", message="No.")
    assert lying(merger, merge.model_copy(update={"flags": (*merge.flags, new)}), said)


def test_ties_and_outliers_of_votes_are_computed_again() -> None:
    """Lists, prose, null, priorities, weights and statistics: an honest merge of each passes."""
    values: list[list[JsonValue]] = [
        [["a", "b"], ["A", "b"], [], "c"],
        [None, None, {"x": 1}],
        [{"x": {"y": 1}}, {"x": {"y": 2, "z": None}}, {}],
        [10, 11, 12, 500, "n"],
        ["one text\n", "one test\n", "another"],
        [1, "1", True, None],
    ]
    said = [
        Outcome(brief=f"v-{n}", item=f"i{at}", status="succeeded", value=value, brief_priority=n % 2)
        for at, each in enumerate(values)
        for n, value in enumerate(each)
    ]
    for method in ("majority", "weighted"):
        for rule in ("auto", "priority", "median", "medoid"):
            weights = {"v-1": 2.0} if method == "weighted" else {}
            consensus = Consensus.model_validate({"method": method, "weights": weights, "rules": {"x.y": rule}})
            assert audit(consensus.merge([], said), said, [], consensus) == ()
