"""What people are asked about a merge, and what their answers decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.flows.review import MAX_OPTIONS, MAX_QUESTIONS, OPEN, ReviewForm, build_form
from prefect_dispatch.models.decisions import Choice, Decisions
from prefect_dispatch.models.ledger import FieldRow, Loser, Proposal, Ref
from prefect_dispatch.models.report import Report

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.models.decisions import Identity

REF = Ref(brief="b", item="one")


def proposal(left: JsonValue, right: JsonValue) -> Proposal:
    """Return a pair that may be one."""
    return Proposal(left=left, right=right, score=0.9, why="Alike.", left_sources=(REF,), right_sources=(REF,))


def row(at: int, *values: JsonValue) -> FieldRow:
    """Return a conflict of some values, the first of which was kept."""
    losers = tuple(Loser(value=value, sources=(REF,)) for value in values[1:])
    return FieldRow(path=f"/records/{at}/year", winner=values[0], losers=losers, rule="max", sources=(REF,))


def located(row: FieldRow) -> tuple[Identity, str] | None:
    """Return the record that a row is about; nothing can be said of the ninth."""
    at = row.path.split("/")[2]
    return None if at == "9" else ({"name": f"n{at}"}, "year")


def asked(*rows: FieldRow, proposals: tuple[Proposal, ...] = (), passed: tuple[str, ...] = ()) -> ReviewForm | None:
    """Return the form of a report."""
    report = Report(status="complete", message="All.", fields=rows, proposals=proposals)
    return build_form(report, located, passed)


def test_nothing_open_is_no_form() -> None:
    """No form for a report without open pairs and conflicts, or with such as have no words in a decisions file."""
    assert asked(row(1, 2), row(9, 1, 2), proposals=(proposal("x", {"name": "y"}),)) is None


def test_an_option_decides_what_it_says() -> None:
    """Same, different, or a value that was said; to leave it open, or to answer what wasn't asked, decides nothing."""
    found = asked(row(1, 2, 1), proposals=(proposal({"name": "a"}, {"name": "b"}),))
    assert found is not None
    pair, year = found.matters
    assert (list(pair.options), list(year.options)) == (
        [OPEN, "same", "different"],
        [OPEN, "1. 2 (from b/one)", "2. 1 (from b/one)"],
    )
    told = found.decisions_from({pair.name: "different", year.name: "2. 1 (from b/one)", "other": "same"})
    assert told == Decisions(
        different=(({"name": "a"}, {"name": "b"}),), fields=(Choice(record={"name": "n1"}, field="year", value=1),)
    )
    assert found.decisions_from({pair.name: OPEN, year.name: "9. 99"}) == found.decisions_from({}) == Decisions()


def test_long_values_that_look_alike_stay_apart() -> None:
    """Cut to one label, two values are told apart by their number, two questions by what they decide."""
    found = asked(row(1, "x" * 100 + "a", "x" * 100 + "b"), row(2, "x" * 100 + "a", "x" * 100 + "c"))
    assert found is not None
    first, second = found.matters
    assert first.name != second.name
    assert len(first.options) == 3
    assert all(len(label) < 110 for label in first.options)
    last = list(first.options)[-1]
    assert found.decisions_from({first.name: last}).fields[0].value == "x" * 100 + "b"


def test_the_first_are_asked_and_the_rest_is_counted() -> None:
    """A form is bounded, and so are its options; what was passed over is not asked again."""
    rows = [row(at, *range(MAX_OPTIONS + 5)) for at in range(100, 103 + MAX_QUESTIONS)]
    found = asked(*rows)
    assert found is not None
    assert (len(found.matters), found.more) == (MAX_QUESTIONS, 3)
    assert "3 more are open" in found.description()
    assert len(found.matters[0].options) == 1 + MAX_OPTIONS
    assert "20 of 25 values are offered here" in found.matters[0].why
    rest = asked(*rows, passed=tuple(matter.name for matter in found.matters))
    assert rest is not None
    assert (len(rest.matters), rest.more) == (3, 0)
    assert "more are open" not in rest.description()


def test_a_form_is_the_same_for_the_same_questions() -> None:
    """Its name depends on what is asked alone, and survives being written down."""
    found = asked(row(1, 2, 1))
    assert found is not None
    assert found == ReviewForm.model_validate_json(found.model_dump_json())
    again = asked(row(1, 2, 1))
    other = asked(row(1, 3, 1))
    assert again is not None
    assert other is not None
    assert found.name == again.name != other.name


def test_no_label_steers_anything() -> None:
    """Control characters and line breaks of agents are not in titles, explanations and options."""
    found = asked(row(1, "a\x1b[31m\n", "b\u202e"), proposals=(proposal({"name": "\x07a"}, {"name": "b\n# c"}),))
    assert found is not None
    for matter in found.matters:
        assert all(text.isprintable() for text in (matter.title, matter.why, *matter.options))
