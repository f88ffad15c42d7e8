"""Sections that a synthesis must have."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.output_format import ProseFormat, find_missing_sections
from prefect_dispatch.integrators.synthesize.synthesize import Synthesize
from tests.integrators.said import say

SECTIONS = ("Finding", "Where they differ")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param("# Finding\n\nA [1].\n\n### **Where they differ**:\nB [1].", [], id="both"),
        pytest.param("## finding\nA.\n## Where  they differ\n", ["Where they differ"], id="an-empty-one"),
        pytest.param("Finding\n\nA.", list(SECTIONS), id="no-headings"),
        pytest.param("## Finding: all\nA.", list(SECTIONS), id="another-heading"),
    ],
)
def test_a_section_is_a_heading_and_something_under_it(text: str, left: list[str]) -> None:
    """Case, level and emphasis of the heading don't matter; an empty section is none."""
    assert find_missing_sections(text, SECTIONS) == left


def test_a_draft_is_told_of_the_sections_that_it_lacks() -> None:
    """It is asked for them in their order, and sent back for each that isn't there."""
    form = ProseFormat(SECTIONS)
    assert form.rules.endswith("## Finding ## Where they differ")
    draft = form.review_response("## Finding\nIt is so [1].", number_answers([say("a", "it is so")]), [1])
    assert draft.faults == ("There is no section '## Where they differ', or nothing in it.",)
    assert ProseFormat().rules == ProseFormat.rules


@pytest.mark.parametrize(
    ("given", "told"),
    [
        pytest.param(
            {"sections": ["Finding"], "output": {"type": "object"}}, "'sections' are for a text", id="a-value"
        ),
        pytest.param({"sections": ["# Finding"]}, "match pattern", id="a-sign"),
        pytest.param({"sections": [" "]}, "match pattern", id="nothing"),
    ],
)
def test_sections_that_cannot_be(given: dict[str, object], told: str) -> None:
    """A value has no headings, and a heading is one line of words."""
    with pytest.raises(ValidationError, match=told):
        Synthesize.model_validate({"instructions": "Sum up.", **given})
