"""Differences of two merged reports as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.models.ledger import Flag, LedgerRow, Proposal
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.difference import (
    MAX_CELL_LENGTH,
    MAX_LINES,
    MAX_ROWS,
    MAX_VALUE_LENGTH,
    build_difference_table,
    describe_differences,
    list_differences,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue


def report(value: JsonValue = None, **parts: object) -> Report:
    """Return a report with a merged value."""
    return Report.model_validate({"status": "complete", "message": "All.", "value": value, **parts})


def describe(before: Report, after: Report, identity: Sequence[str] = ()) -> str:
    """Return the differences of two reports as text."""
    return describe_differences(list_differences(before, after, identity))


def difference(before: JsonValue, after: JsonValue) -> list[str]:
    """Return the lines on two merged values, without the title."""
    return describe(report(before), report(after), ["name"]).splitlines()[1:]


def test_equal_reports_have_none() -> None:
    """A sentence says so."""
    assert describe(report({"a": 1}), report({"a": 1})) == "Nothing differs."
    assert describe(report([1]), report([1])) == "Nothing differs."


def test_texts_differ_sentence_by_sentence() -> None:
    """What both have is left out; each line or sentence that is another one has both versions."""
    assert difference("one\ntwo\nthree", "one\n2\nthree") == ["  ~ two -> 2"]
    before, after = "MIT is short. It is old.", "MIT is short. It is from 1988. It is free."
    assert difference(before, after) == ["  ~ It is old. -> It is from 1988.", "  + It is free."]
    assert difference(after, before) == ["  ~ It is from 1988. -> It is old.", "  - It is free."]
    assert difference("a\n\nb", "a\nb") == [r'  ~ "a\n\nb" -> "a\nb"']


def test_the_heading_says_where_a_sentence_stands() -> None:
    """In a text, and in a long text of an object."""
    before, after = "# Terms\nOne.\n## Costs\nFive.", "# Terms\nOne.\n## Costs\nSix.\n## More\nNone."
    assert difference(before, after) == ["  ~ Costs: Five. -> Six.", "  + Costs: ## More", "  + More: None."]
    assert difference({"text": before}, {"text": after})[0] == "  ~ text, Costs: Five. -> Six."


def test_outcomes_that_are_cited_have_their_names() -> None:
    """Their numbers change with each that is left out."""
    before = "Old is MIT [1]. So is ISC [2, 3].\n\n## Sources\n\n[1] b/a\n[2] b/b\n[3] b/c"
    after = "So is ISC [1, 2].\n\n## Sources\n\n[1] b/b\n[2] b/c"
    assert difference(before, after) == ["  - Old is MIT [b/a].", "  - Sources: b/a"]
    assert difference(before, before.replace("[1]. So", "[9]. So")) == ["  ~ Old is MIT [b/a]. -> Old is MIT [9]."]


def test_a_value_by_a_schema_has_the_names_of_what_it_cites() -> None:
    """In its texts, beside each place, and in the list of all."""

    def written(*items: str, text: str, cited: list[JsonValue]) -> dict[str, JsonValue]:
        return {
            "value": {"points": [text], "days": 5},
            "sources": {str(at): {"brief": "b", "item": item} for at, item in enumerate(items, 1)},
            "cited": {"/value/points/0": cited},
        }

    before = written("x", "y", text="It is free [2].", cited=[2])
    after = written("y", text="It is free [1].", cited=[1])
    assert difference(before, after) == ['  - sources, b/x: {"brief":"b","item":"x"}']
    after["value"] = {"points": ["It is old [1]."], "days": 5}
    assert difference(before, after)[0] == '  ~ value, points: "It is free [b/y]." -> "It is old [b/y]."'
    odd: dict[str, JsonValue] = {"sources": {"1": 1}, "cited": {"/": 1}}
    assert difference(odd, {**odd, "cited": {"/": 2}}) == ["  ~ cited, /: 1 -> 2"]
    # `sources` may be any field of another integrator.
    assert difference({"sources": {"1": 1}}, {"sources": {"1": 2}}) == ["  ~ sources, 1: 1 -> 2"]


def test_values_within_an_entry_differ_one_by_one() -> None:
    """Fields that one entry lacks, elements of its lists, and objects in it, at any depth."""
    was: JsonValue = {"name": "m", "tags": ["x", "y"], "of": {"a": 1, "b": {"c": 2}}, "old": 0, "none": None}
    now: JsonValue = {"name": "m", "tags": ["y", "z"], "of": {"a": 1, "b": {"c": 3}}, "new": 0}
    assert difference({"records": [was]}, {"records": [now]}) == [
        '  + records, name "m", tags: "z"',
        '  - records, name "m", tags: "x"',
        '  ~ records, name "m", of, b, c: 2 -> 3',
        '  - records, name "m", old: 0',
        '  - records, name "m", none: null',
        '  + records, name "m", new: 0',
    ]
    assert difference({"of": {"list": [1, 2]}}, {"of": {"list": [2, 1]}}) == ["  ~ of, list: [1,2] -> [2,1]"]


def test_entries_have_the_names_of_their_integrator() -> None:
    """Items that were voted on, environments, and tests."""
    for entry, name in [
        ({"item": "a"}, 'item "a"'),
        ({"key": "3.13"}, 'key "3.13"'),
        ({"suite": "", "classname": "T", "name": "t"}, 'classname "T", name "t"'),
    ]:
        before: JsonValue = {"list": [{**entry, "n": 1}]}
        assert describe(report(before), report({"list": [{**entry, "n": 2}]})).splitlines()[1:] == [
            f"  ~ list, {name}, n: 1 -> 2"
        ]


def test_lists_of_another_integrator_are_added_entry_by_entry() -> None:
    """Also where there is no merged value at all."""
    before: JsonValue = {"answers": [{"brief": "b", "item": "x", "value": 1}]}
    after: JsonValue = {"records": [{"name": "m"}], "n": 1}
    assert difference(before, after) == [
        '  - answers, b/x: {"brief":"b","item":"x","value":1}',
        '  + records, name "m": {"name":"m"}',
        "  + n: 1",
    ]
    assert difference(after, None) == ['  - records, name "m": {"name":"m"}', "  - n: 1"]


def test_what_python_takes_for_equal_differs() -> None:
    """A boolean, an integer and a float are three values; a list that is no longer one is another value."""
    assert difference({"a": 1}, {"a": True}) == ["  ~ a: 1 -> true"]
    assert difference({"a": 1}, {"a": 1.0}) == ["  ~ a: 1 -> 1.0"]
    assert difference({"a": [1]}, {"a": 1}) == ["  ~ a: [1] -> 1"]


def test_what_looks_alike_is_shown_by_its_characters() -> None:
    """Two normal forms of one letter, and a character that changes the direction of writing."""
    assert difference({"a": "Müller"}, {"a": "Mu\u0308ller"}) == [r'  ~ a: "M\u00fcller" -> "Mu\u0308ller"']
    assert difference("Müller", "Mu\u0308ller") == [r'  ~ "M\u00fcller" -> "Mu\u0308ller"']
    assert difference({"a": "x\u202ey"}, {"a": "x y"}) == [r'  ~ a: "x\u202ey" -> "x y"']


def test_long_values_are_shown_where_they_differ() -> None:
    """In a line and, longer, in the table."""
    [line] = difference({"a": ["x" * 5000]}, {"a": 1})
    assert len(line) < 2 * MAX_VALUE_LENGTH
    [found] = list_differences(report({"a": "x" * 5000 + "y"}), report({"a": "x" * 5000 + "z"}))
    assert found.format() == f"~ a: …{'x' * 40}y -> …{'x' * 40}z"
    [row] = build_difference_table([found._replace(after="x")]).rows
    assert len(str(row["before"])) == MAX_CELL_LENGTH


def test_flags_move_with_their_entry() -> None:
    """A flag at the second record is the same one if the first record is gone."""
    flag = Flag(path="/records/1/n", kind="conflict", text="1", message="They disagree.")
    value: JsonValue = {"records": [{"name": "a", "n": 1}, {"name": "b", "n": 1}]}
    gone: JsonValue = {"records": [{"name": "b", "n": 1}]}
    moved = flag.model_copy(update={"path": "/records/0/n"})
    assert [
        each.section for each in list_differences(report(value, flags=(flag,)), report(gone, flags=(moved,)), ["name"])
    ] == ["The merged value"]
    lost = flag.model_copy(update={"path": "/records/7/n"})
    found = list_differences(report(gone, flags=(moved,)), report(gone, flags=(lost,)), ["name"])
    assert [each.format() for each in found] == [
        '- records, name "b", n: conflict: 1: They disagree.',
        "+ records, 7, n: conflict: 1: They disagree.",
    ]


def test_the_table_is_bounded() -> None:
    """It says how many more there are, or that there are none."""
    found = list_differences(report({"list": []}), report({"list": [*range(MAX_ROWS + 2)]}))
    table = build_difference_table(found)
    assert (len(table.rows), table.note) == (MAX_ROWS, "2 more are not listed.")
    assert table.rows[0] == {
        "part": "The merged value", "change": "added", "place": "list", "before": "", "after": "0"
    }  # fmt: skip
    assert build_difference_table(found[:1]).note == ""
    assert build_difference_table([]).note == "Nothing differs."


def test_values_of_other_types_differ_as_a_whole() -> None:
    """A text against a list, or a list against a number."""
    assert difference("one", ["one"]) == ['  ~ "one" -> ["one"]']
    assert difference([1], 1) == ["  ~ [1] -> 1"]


def test_fields_beside_the_entries_differ_by_name() -> None:
    """An object of the merged value that is no list."""
    assert difference({"winner": "a", "n": 1}, {"winner": "b", "n": 1}) == ['  ~ winner: "a" -> "b"']


def test_entries_differ_by_their_names() -> None:
    """By brief and item, by identity, or by their content; several of one name are compared as a whole."""
    record: JsonValue = {"name": "m", "n": 1}
    before: JsonValue = {"answers": [{"brief": "b", "item": "x", "value": 1}, 7, 7], "records": [record]}
    after: JsonValue = {"answers": [{"brief": "b", "item": "x", "value": 2}, 7], "records": [record, record]}
    assert difference(before, after) == [
        "  ~ answers, b/x, value: 1 -> 2",
        "  - answers: 7",
        '  + records, name "m": {"n":1,"name":"m"}',
    ]


def test_entries_without_an_identity_differ_by_their_content() -> None:
    """Their order makes no difference."""
    before, after = report({"list": [{"a": 1}, {"a": 2}]}), report({"list": [{"a": 2}, {"a": 3}]})
    assert describe(before, after).splitlines()[1:] == ['  + list: {"a":3}', '  - list: {"a":1}']


def test_the_rest_of_a_report_differs_line_by_line() -> None:
    """Dispositions, flags, proposals and shortfalls."""
    row = LedgerRow(brief="b", item="x", disposition="merged")
    flag = Flag(path="/a", kind="conflict", text="1", message="They disagree.")
    proposal = Proposal(
        left={"name": "a"}, right={"name": "b"}, score=0.9, why="Alike.", left_sources=(), right_sources=()
    )
    same = row.model_copy(update={"item": "y"})
    before = report(ledger=(row, same), flags=(flag, flag.model_copy(update={"path": ""})))
    after = report(ledger=(same,), proposals=(proposal,), shortfalls=("Half is missing.",))
    assert describe(before, after).splitlines() == [
        "The ledger (1 difference):",
        "  ~ b/x: merged -> not there",
        "Flags (2 differences):",
        "  - a: conflict: 1: They disagree.",
        "  - /: conflict: 1: They disagree.",
        "Proposals (1 difference):",
        '  + {"name":"a"} and {"name":"b"}: Alike.',
        "Shortfalls (1 difference):",
        "  + Half is missing.",
    ]


def test_long_lists_are_counted() -> None:
    """The first lines are shown."""
    lines = difference([], {"list": []})
    assert lines == ['  ~ [] -> {"list":[]}']
    lines = difference({"list": []}, {"list": list(range(MAX_LINES + 2))})
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "  … and 2 more."
