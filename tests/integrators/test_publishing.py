"""Whatever a model writes, what follows below it is there to be seen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.output_format import MARK, render_document, sanitize_prose
from tests.integrators.said import say

SAID = [say("a", "x"), say("b", "y")]
HIDING = [
    "<!-- ",
    "<![CDATA[",
    "<?php",
    "<!X",
    "<script>",
    "<details>",
    "<pre",
    "</b>",
    "```",
    "~~~~ text",
    "- ```",
    "   ```py",
    "1. x\n   ```",
    "> ```",
    "````",
    "\t```",
    "    code",
    "$$",
    "[1]: <",
    "\\",
    "\n",
    "it is [1]",
]


@pytest.mark.parametrize("prose", HIDING)
def test_nothing_hides_the_sections_below(prose: str) -> None:
    """An open comment, an open fence: the sections come after it all the same."""
    assert _headings(prose) == ["Also reported", "Sources"]


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(HIDING), max_size=6).map("\n".join) | st.text(alphabet="<!-->`~ \n\t1.[]:a", max_size=40)
)
@settings(deadline=None, max_examples=300)
def test_no_mixture_hides_the_sections_below(prose: str) -> None:
    """Nor does anything that is put together of it."""
    assert _headings(prose)[-2:] == ["Also reported", "Sources"]


def _headings(prose: str) -> list[str]:
    found = MarkdownIt("commonmark").parse(render_document(sanitize_prose(prose), number_answers(SAID), [1, 2], SAID))
    assert "html_block" not in {token.type for token in found}
    tops = [at for at, token in enumerate(found) if token.type == "heading_open" and not token.level]
    return [found[at + 1].content for at in tops]


@given(st.lists(st.sampled_from(["[unver", "ified]", "[unverified]", " ", "[", "]", "x"]), max_size=12).map("".join))
def test_no_mark_is_a_models_own(prose: str) -> None:
    """However marks are put together: none is left."""
    assert MARK.strip() not in sanitize_prose(prose)


@pytest.mark.timeout(30)
def test_marks_in_marks_take_no_long_time() -> None:
    """A mark in a mark in a mark: one way through the text is enough."""
    deep = 100_000
    assert MARK not in sanitize_prose("[unver" * deep + MARK + "ified]" * deep)
