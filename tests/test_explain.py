"""The story of one value: found by whatever a reader calls it, told with all that bears on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.models.ledger import FieldRow, Flag, LedgerRow, Loser, Proposal, Ref, Table
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.explain import MAX_ENTRIES, explain, explain_sources

if TYPE_CHECKING:
    from pydantic import JsonValue

A, B, C = (Ref(brief="terms", item=key) for key in ("a.txt", "b.txt", "c.txt"))

OPEN_PAIR = (
    'Open: are {"name":"MIT"} (from terms/a.txt, terms/b.txt) and {"name":"MIT License 1.0"} (from terms/c.txt) one? '
    "0.900 alike: Alike: 'name' 0.9."
)

REPORT = Report(
    status="gaps",
    message="3 of 3 answered. One could not be compared.",
    value={
        "records": [{"name": "MIT", "year": 1988, "tags": ["x", "y"]}, {"name": "MIT License 1.0", "year": 1987}],
        "gaps": [],
    },
    ledger=tuple(LedgerRow(brief=ref.brief, item=ref.item, disposition="merged") for ref in (A, B, C)),
    fields=(
        FieldRow(
            path="/records/0/name",
            winner="MIT",
            losers=(Loser(value="Expat", sources=(B,)),),
            rule="priority",
            sources=(A,),
        ),
        FieldRow(
            path="/records/0/year", winner=1988, losers=(Loser(value=1987, sources=(A,)),), rule="max", sources=(B,)
        ),
        FieldRow(path="/records/0/tags", winner=["x", "y"], rule="union", sources=(A, B)),
        FieldRow(path="/records/1/name", winner="MIT License 1.0", rule="priority", sources=(C,)),
        FieldRow(path="/records/1/year", winner=1987, rule="max", sources=(C,)),
    ),
    rules="Names are as the preferred record says (priority). 'year' becomes the largest value. Ties fall by content.",
    proposals=(
        Proposal(
            left={"name": "MIT"},
            right={"name": "MIT License 1.0"},
            score=0.9,
            why="Alike: 'name' 0.9.",
            left_sources=(A, B),
            right_sources=(C,),
        ),
        Proposal(left={}, right="x", score=0.5, why="No names.", left_sources=(), right_sources=()),
    ),
    flags=(
        Flag(path="/records/0/year", kind="conflict", text="1988", message="Two years.", sources=(A, B)),
        Flag(path="/records/0/tags/1", kind="claim", text="y", message="Nobody says so."),
    ),
    tables=(
        Table(name="trust", title="Trust", rows=({"brief": "terms", "weight": 0.7}, {"brief": "other", "weight": 1})),
        Table(name="links", title="Links", rows=({"item": "b.txt", "to": None, "score": 1.0},)),
    ),
    shortfalls=("One could not be compared.",),
)


@pytest.mark.parametrize(
    ("what", "paths"),
    [
        pytest.param("/records/0/year", ["/records/0/year"], id="pointer"),
        pytest.param("records.0.year", ["/records/0/year"], id="dotted"),
        pytest.param("year", ["/records/0/year", "/records/1/year"], id="name"),
        pytest.param("MIT.year", ["/records/0/year"], id="record-and-field"),
        pytest.param("mit license 1.0.year", ["/records/1/year"], id="a-name-with-dots-in-another-case"),
        pytest.param("Expat.year", ["/records/0/year"], id="a-name-that-was-not-kept"),
        pytest.param("MIT License 1.0", ["/records/1/name", "/records/1/year"], id="record"),
        pytest.param("/records/1", ["/records/1/name", "/records/1/year"], id="above"),
        pytest.param("records.1", ["/records/1/name", "/records/1/year"], id="above-dotted"),
        pytest.param("/records/0/tags/1", ["/records/0/tags"], id="inside"),
        pytest.param("records.0.tags.1", ["/records/0/tags"], id="inside-dotted"),
    ],
)
def test_a_value_is_found_by_what_a_reader_calls_it(what: str, paths: list[str]) -> None:
    """Each reading finds exactly the values that are meant."""
    told = [line.split(" = ")[0] for line in explain(REPORT, what).splitlines() if line.startswith("/")]
    assert told == paths


def test_a_value_tells_its_rule_in_words_and_all_that_bears_on_it() -> None:
    """Value, sources, rule, the rules' own sentence on it, what was not kept, flags, open pairs, the sources' trust."""
    assert explain(REPORT, "MIT.year").splitlines() == [
        "/records/0/year = 1988 (from terms/b.txt)",
        "  rule: max",
        "  in words: 'year' becomes the largest value.",
        "  not kept: 1987 (from terms/a.txt)",
        "  Flag at /records/0/year: conflict: '1988': Two years. (looked into terms/a.txt, terms/b.txt)",
        f"  {OPEN_PAIR}",
        "  Trust: brief terms, weight 0.7",
    ]


def test_a_flag_on_a_part_is_told_of_the_whole() -> None:
    """What is doubtful about an element stands in the story of its list."""
    assert "Flag at /records/0/tags/1: claim" in explain(REPORT, "tags")


def test_an_item_tells_what_names_it() -> None:
    """What it gave and lost, the flags and pairs that name it, the rows of tables about it."""
    told = explain(REPORT, "b.txt").splitlines()
    assert told[:4] == [
        "terms/b.txt: merged",
        "  gave /records/0/year = 1988",
        '  gave /records/0/tags = ["x","y"]',
        '  lost /records/0/name = "Expat" by priority',
    ]
    assert [line.split(":")[0] for line in told[4:]] == ["  Open", "  Flag at /records/0/year", "  Links"]


def test_the_whole_names_what_needs_a_look() -> None:
    """Shortfalls, flags, open pairs, conflicts and rules, each once."""
    told = explain(REPORT)
    for start in (
        "Shortfall: One",
        "Flag at /records/0/year",
        OPEN_PAIR,
        "Conflicts at /records/0/name",
        "Rules: Names",
    ):
        assert told.count(start) == 1, start


def test_an_item_tells_which_sentences_cite_it() -> None:
    """In prose, by the number that the list of sources gives it, in ranges and lists too; a text is cut short."""
    said = "Both are short [1-2]. One is old. [2] Nobody [3] knows [1, 3]."
    text = f"{said}\n\n## Sources\n\n[1] terms/a.txt  \n[2] terms/b.txt  \n" + "x" * 300
    report = Report(
        status="complete",
        message="All.",
        value=text,
        ledger=tuple(LedgerRow(brief=ref.brief, item=ref.item, disposition="merged") for ref in (A, B)),
        fields=(FieldRow(path="", winner=text, rule="synthesis", sources=(A, B)),),
    )
    cited = [line for line in explain(report, "b.txt").splitlines() if "cited" in line]
    assert cited == ["  cited: Both are short [1-2].", "  cited: One is old. [2]"]
    (gave,) = [line for line in explain(report, "a.txt").splitlines() if "gave" in line]
    assert gave.endswith("…")
    assert len(gave) < 320
    assert said in explain(report, "/")


def test_an_unknown_name_gets_the_nearest() -> None:
    """The message names the nearest items, pointers, dotted paths and records."""
    with pytest.raises(LookupError, match=r"records\.0\.year"):
        explain(REPORT, "record.0.yaer")
    with pytest.raises(LookupError, match=r"MIT\.year"):
        explain(REPORT, "MIT.yera")
    with pytest.raises(LookupError, match=r"b\.txt"):
        explain(REPORT, "b.tx")
    with pytest.raises(LookupError, match="traces no fields"):
        explain(Report(status="failed", message="No."), "x")


def test_a_story_has_an_end() -> None:
    """Of more than one can read, the first are told and the rest is counted."""
    many: list[JsonValue] = [{"name": f"n{at}"} for at in range(MAX_ENTRIES + 3)]
    fields = tuple(
        FieldRow(path=f"/records/{at}/name", winner=f"n{at}", rule="priority", sources=(A,))
        for at in range(MAX_ENTRIES + 3)
    )
    ledger = (LedgerRow(brief="terms", item="a.txt", disposition="merged"),)
    report = Report(status="complete", message="All.", value={"records": many}, fields=fields, ledger=ledger)
    assert explain(report, "name").endswith("… and 3 more of that name; say more precisely which.")
    assert explain(report, "a.txt").endswith("  … and 3 more like these.")


def test_values_of_any_kind_are_no_trap() -> None:
    """Rows about a list, a scalar or a place that isn't there are found by their path all the same."""
    rows = tuple(FieldRow(path=path, winner=1, rule="own", sources=(A,)) for path in ("/x", "/0/9/a", "/0/a"))
    report = Report(status="complete", message="All.", value=[True, {"a": 1}], fields=rows)
    assert explain(report, "0.a").startswith("/0/a = 1")
    assert explain(report, "0.9.a").startswith("/0/9/a = 1")
    with pytest.raises(LookupError):
        explain(report, "y.a.b")


def test_items_on_which_nothing_rests() -> None:
    """A report says so, and where it can't know."""
    rows = tuple(LedgerRow(brief=ref.brief, item=ref.item, disposition="merged") for ref in (A, B))
    fields = (FieldRow(path="/n", winner=1, rule="max", sources=(A,)),)
    report = Report(status="complete", message="All.", value={"n": 1}, ledger=rows, fields=fields)
    assert "Nothing in the merged value rests on them." in explain_sources(report, ["b.txt"])
    untraced = report.model_copy(update={"fields": ()})
    unknown = "The merged value doesn't say which outcome each part of it is from."
    assert unknown in explain_sources(untraced, ["b.txt"])


def test_long_and_logical_values_name_no_record() -> None:
    """Only what somebody could type does."""
    value: JsonValue = {"records": [{"name": "x" * 1000, "free": True}]}
    fields = tuple(
        FieldRow(path=f"/records/0/{name}", winner=winner, rule="priority", sources=(A,))
        for name, winner in (("name", "x" * 1000), ("free", True))
    )
    ledger = (LedgerRow(brief="terms", item="a.txt", disposition="merged"),)
    report = Report(status="complete", message="All.", value=value, fields=fields, ledger=ledger)
    with pytest.raises(LookupError, match="no item and no value 'True'"):
        explain(report, "True")
