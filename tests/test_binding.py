"""Briefs that name code of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import BriefError
from prefect_dispatch.models.brief import Brief, resolve_user_code
from prefect_dispatch.models.test_run import TestRun

if TYPE_CHECKING:
    from pathlib import Path

CODE = """
from pydantic import BaseModel

class Shape(BaseModel):
    sides: int

def fine(value, item):
    return None

NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of the user's own, under a name that is used once."""
    (tmp_path / "bound_shapes.py").write_text(CODE)
    return tmp_path


def test_names_become_what_they_stand_for(folder: Path) -> None:
    """A model and a function of the user's own are loaded; other checks and other briefs stay as they are."""
    brief = Brief.model_validate(
        {
            "name": "b",
            "instructions": "Do.",
            "output": "bound_shapes:Shape",
            "checks": [{"kind": "max_words", "words": 3}, {"kind": "function", "function": "bound_shapes:fine"}],
        }
    )
    bound = resolve_user_code(brief, folder)
    assert isinstance(bound.output, type)
    assert bound.output.__name__ == "Shape"
    assert bound.references == ()
    assert bound.checks[0] == brief.checks[0]
    plain = Brief(name="b", instructions="Do.")
    assert resolve_user_code(plain, folder) is plain
    with_schema = Brief.model_validate(
        {
            "name": "b",
            "instructions": "Do.",
            "output": {"type": "object"},
            "checks": [{"kind": "function", "function": "bound_shapes:fine"}],
        }
    )
    assert resolve_user_code(with_schema, folder).output == '{"type":"object"}'


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"output": "bound_shapes:NUMBER"}, id="a-number-as-a-model"),
        pytest.param({"output": "bound_shapes:fine"}, id="a-function-as-a-model"),
        pytest.param({"checks": [{"kind": "function", "function": "bound_shapes:NUMBER"}]}, id="a-number-as-a-check"),
        pytest.param({"output": "bound_shapes:Missing"}, id="nothing"),
    ],
)
def test_the_wrong_kind_of_thing_is_refused(changed: dict[str, object], folder: Path) -> None:
    """What is no model is no output, and what can't be called is no check."""
    brief = Brief.model_validate({"name": "b", "instructions": "Do.", **changed})
    with pytest.raises(BriefError):
        resolve_user_code(brief, folder)


def test_the_answer_of_a_test_suite_can_be_named(folder: Path) -> None:
    """It is of this package; nothing else of it is taken for code of the user's."""
    brief = Brief(name="b", instructions="Do.", output="prefect_dispatch.test_run:TestRun")
    assert resolve_user_code(brief, folder).output is TestRun
    with pytest.raises(BriefError, match="is not code of yours"):
        resolve_user_code(Brief(name="b", instructions="Do.", output="prefect_dispatch.models:Brief"), folder)
