"""What a brief's schema promises, so that what can't be checked is refused before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from prefect_dispatch import Brief, plan
from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.merge_records.schema_conformance import require_check_fields
from prefect_dispatch.models.checks import MaxWords, Sources
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from pathlib import Path

OBJECT = {"type": "object", "properties": {"title": {"type": "string"}, "by": {"$ref": "#/$defs/person"}}}
PERSON = {"$defs": {"person": {"type": "object", "properties": {"name": {"type": "string"}}}}}


class Paper(BaseModel):
    """An answer as a model of the user's own."""

    title: str


def brief(output: Any, field: str) -> Brief:  # noqa: ANN401 -- whatever form an output may have
    """Return a brief with a check of a field."""
    return Brief(name="b", instructions="Do.", output=output, checks=(MaxWords(field=field, words=3),))


@pytest.mark.parametrize(
    ("output", "field"),
    [
        pytest.param("text", "", id="a-text"),
        pytest.param({**OBJECT, **PERSON}, "", id="a-whole-answer"),
        pytest.param({**OBJECT, **PERSON}, "by.name", id="a-field-behind-a-reference"),
        pytest.param({"type": "object"}, "anything", id="a-schema-that-lists-no-fields"),
        pytest.param(Paper, "title", id="a-model"),
    ],
)
def test_what_may_be_there_may_be_checked(output: object, field: str) -> None:
    """The schema has the field, or doesn't say."""
    require_check_fields([brief(output, field)])


@pytest.mark.parametrize(
    ("output", "field", "why"),
    [
        (
            {**OBJECT, **PERSON},
            "titel",
            "Field 'titel' of a check is not in the schema of brief 'b'; did you mean 'title'?",
        ),
        ({**OBJECT, **PERSON}, "by.nme", "did you mean 'name'?"),
        ({**OBJECT, **PERSON}, "title.length", "'title' is string, which has no fields."),
        (Paper, "year", "known are 'title'."),
        ("text", "title", "answers with text, and has a check of field 'title'; leave 'field' out"),
    ],
)
def test_what_no_answer_has_is_not_checked(output: object, field: str, why: str) -> None:
    """The message names the brief, the field, and the nearest one."""
    with pytest.raises(JobError) as caught:
        require_check_fields([brief(output, field)])
    assert why in str(caught.value)


def test_a_plan_refuses_it(tmp_path: Path) -> None:
    """Before anybody is asked, whatever kind of check has a field."""
    ours = Brief(name="b", instructions="Do.", output={**OBJECT, **PERSON}, checks=(Sources(),))
    with pytest.raises(JobError, match="Field 'sources' of a check"):
        plan([ours], ["a"], ScriptedExecutor(lambda _: {}), folder=tmp_path)
