"""The heat map on a report's page: which test came to what in which environment, cut where it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.reporting.html import page
from prefect_dispatch.reporting.html.document import TextPreviews
from prefect_dispatch.reporting.html.page import LETTERS
from tests.matrices import matrix
from tests.reports import made
from tests.test_page import HOSTILE, told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_dispatch.models.report import Report


def map_of(report: Report) -> dict[str, Any]:
    """Return the heat map of a report that has one."""
    found = page.build_heat_map(report, TextPreviews())
    assert found
    return found


def letters(found: Mapping[str, Any], test: str) -> str:
    """Return the letters of a test, one for each environment."""
    [row] = [row for row in found["tests"] if row[0] == test]
    said = str(row[3])
    return said if len(said) > 1 else said * len(found["environments"])


def test_a_heat_map() -> None:
    """Each test has a letter for each environment, and those in trouble come first, each with what it says."""
    report = matrix(10, 60)
    found = map_of(report)
    names = [each["environment"] for each in found["environments"]]
    assert names[0] == "python=3.9,attrs=22"
    assert found["environments"][0]["ref"] == ["tests", "python=3.9,attrs=22"]
    assert [each["required"] for each in found["environments"]] == ["yes"] * 2 + ["no"] * 8
    assert letters(found, "tests.test_0::test_3[a-0]") == "PPFFPPPPP?"
    assert letters(found, "tests.test_1::test_57[a-0]") == "PPPPPPPPE?"
    assert letters(found, "tests.test_0::test_11[a-2]") == "KPPKPPKPP?"
    assert letters(found, "tests.test_1::test_59[a-2]") == "PP-PPPPPP?"
    assert letters(found, "tests.test_0::test_13[a-1]") == "SSSSSSSSS?"
    first = [row[0] for row in found["tests"][:4]]
    assert first[:2] == ["tests.test_0::test_3[a-0]", "tests.test_1::test_53[a-2]"]
    assert found["said"]["0/2"] == [["assert 1 == 0"], ["E   assert 1 == 0\n"], 1]
    assert {result for row in found["tests"] for result in row[3]} <= set(found["results"])
    assert found["results"] == {letter: name for name, letter in LETTERS.items()}
    trouble = [row[2] for row in found["tests"]]
    assert trouble[-1] == "everywhere"
    assert "absent" in trouble


def test_durations() -> None:
    """Milliseconds, with a fraction where they are few; nothing where nobody measured them."""
    found = map_of(matrix(3, 60))
    times = {row[0]: row[4] for row in found["tests"]}
    assert times["tests.test_0::test_2[a-2]"] == [4, 4, None]
    assert times["tests.test_0::test_20[a-2]"] == [400, 400, None]
    assert times["tests.test_0::test_0[a-0]"] == []


def test_what_is_wrong_with_a_run() -> None:
    """An error of a run itself stands in that environment alone; the others have nothing wrong."""
    report = matrix(3, 4)
    assert isinstance(report.value, dict)
    tests: Any = report.value["tests"]
    tests.append(
        {
            "suite": "the run itself", "classname": "", "name": "exit code and report agree", "same": "differs",
            "results": {"python=3.9,attrs=22": {"result": "error", "seconds": 0.0, "message": "It is 0.", "tries": 2}},
        }
    )  # fmt: skip
    found = map_of(report)
    assert letters(found, "the run itself: exit code and report agree") == "EP?"
    assert [["It is 0."], [""], 2] in found["said"].values()


def test_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many tests those in trouble are shown, and it is said how many there are."""
    monkeypatch.setattr(page, "CELLS", 35)
    monkeypatch.setattr(page, "MAX_CELL_DETAILS", 2)
    found = map_of(matrix(10, 60))
    assert (len(found["tests"]), found["of"], len(found["said"])) == (3, 60, 2)
    assert all("F" in row[3] or "E" in row[3] for row in found["tests"])


def test_several_briefs() -> None:
    """Where environments are called by brief and item, each leads to its own page."""
    report = matrix(2, 3)
    first = report.outcomes[0]
    other = first.model_copy(update={"brief": "more"})
    renamed = report.model_copy(update={"outcomes": (*report.outcomes, other)})
    assert [each["ref"] for each in map_of(renamed)["environments"]] == [None, None]


@pytest.mark.parametrize("value", [None, "text", {"tests": 1}, {"tests": [], "passed": [{"name": "x"}]}])
def test_other_values(value: Any) -> None:  # noqa: ANN401 -- JSON
    """What is no test matrix has no heat map, whatever tables are beside it."""
    assert page.build_heat_map(matrix(2, 3).model_copy(update={"value": value}), TextPreviews()) is None


def test_on_the_page() -> None:
    """A page has the heat map's data if there is one, and no trace of it otherwise."""
    found = told(matrix(10, 60))
    assert found["report"]["matrix"] == {"red": 4}
    assert len(found["heat"]["tests"]) == 60
    plain = told(*made(3))
    assert plain["report"]["matrix"] is None
    assert "heat" not in plain


def test_hostile_names_stay_data() -> None:
    """A test may be called anything."""
    found = told(matrix(3, 8, text=HOSTILE))
    assert any(HOSTILE in row[0] for row in found["heat"]["tests"])
    assert any(HOSTILE in each["environment"] for each in found["heat"]["environments"])
