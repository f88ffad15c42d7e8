"""Other people's text: readable wherever it is shown, and without effect there."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefect_dispatch.security.escaping import (
    MAX_VALUE,
    escape_cell,
    escape_paragraph,
    escape_prose,
    fence_text,
    json_block,
    markdown_table,
    to_safe_csv,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

HARMLESS = {"paragraph_open", "paragraph_close", "inline", "blockquote_open", "blockquote_close", "table_open"}
"""Blocks that we open ourselves."""
TEXT = {"text", "softbreak", "hardbreak", "text_special"}
"""What a text consists of once Markdown has been read."""

RENDER = MarkdownIt("gfm-like", {"linkify": False})

ADDRESS = re.compile(r"(?i)(https?://|www(?=\.))[-.\w]+|[-.\w+]+@[-\w]+(\.[-\w]+)+")
"""What the renderer of Prefect's UI (mdast-util-gfm-autolink-literal) makes a link of, references read."""

BEFORE = ' "\ufeff\x0b'
"""What a spreadsheet may skip before a formula."""
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001 -- wide ones, too

nasty = st.text(alphabet=st.sampled_from("ab1 \n\t[]()<>!*_`~#+-=.:/@&|\\$;x\u202e{}\r"), max_size=60)


def effects(markdown: str) -> set[str]:
    """Return everything in a text that is neither words nor a block that we opened."""
    found: set[str] = set()
    for token in RENDER.parse(markdown):
        found |= {token.type} | {child.type for child in token.children or ()}
    return found - HARMLESS - TEXT


@given(nasty)
def test_a_paragraph_is_a_paragraph(text: str) -> None:
    """Whatever it says: no heading, no list, no link, no emphasis, no markup."""
    assert effects(escape_paragraph(text)) == set()


@given(nasty)
def test_prose_is_a_quotation_of_its_lines(text: str) -> None:
    """Whatever it says, it stays inside, and every word is there to read."""
    shown = escape_prose(text)
    assert effects(shown) == set()
    assert all(line.startswith(">") for line in shown.splitlines())


@given(st.lists(st.lists(nasty, min_size=2, max_size=2), max_size=3))
def test_a_table_keeps_its_columns(rows: list[list[str]]) -> None:
    """Whatever cells and headers say, there are as many of them as were given."""
    html = RENDER.render(markdown_table(["one", "tw|o"], rows))
    assert html.count("<th>") == 2
    assert html.count("<td>") == 2 * len(rows)


@pytest.mark.parametrize("text", ["see https://e.example/x", "www.e.example", "me@e.example", "HTTP://E.example"])
def test_an_address_becomes_no_link(text: str) -> None:
    """What renderers take for a bare address is not there; a reader still reads it."""
    shown = escape_cell(text)
    assert not ADDRESS.search(shown)
    assert shown.replace("\u2060", "") == text


@pytest.mark.parametrize(
    ("text", "as_it_is"),
    [
        pytest.param("Both [1], all [1-3, 5].", True, id="citation"),
        pytest.param("file_name.txt (from a/b): {x}", True, id="names"),
        pytest.param("AT&T, R & D", True, id="ampersand"),
        pytest.param("[1](http://e.example)", False, id="link"),
        pytest.param("[1]: x", False, id="definition"),
        pytest.param("&lt;", False, id="reference"),
    ],
)
def test_what_has_no_effect_is_not_disfigured(text: str, as_it_is: bool) -> None:  # noqa: FBT001 -- a column
    """One of Prefect's UIs shows character references as they are, so there are none without need."""
    assert (escape_cell(text) == text) is as_it_is


def test_long_texts_are_cut_and_say_so() -> None:
    """A paragraph and prose are bounded."""
    for shown in (escape_paragraph("x" * 60_000), escape_prose("x\n" * 60_000)):
        assert shown.endswith("… cut here; `report.json` has everything.")
        assert len(shown) < 4 * MAX_VALUE


def test_a_fence_cannot_be_ended() -> None:
    """It is longer than any inside."""
    assert fence_text("````\n# head", "yaml").startswith("`````yaml\n")


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.text(max_size=8) | nasty | st.integers() | st.none()), max_size=4
    )
)
def test_a_sheet_computes_nothing_and_loses_nothing(rows: list[dict[str, str | int | None]]) -> None:
    """Wherever a spreadsheet starts a cell, no formula stands; without the apostrophes all is there."""
    text = to_safe_csv([dict(row) for row in rows])
    names = list(dict.fromkeys(name for row in rows for name in row))
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert list(csv.reader(text.splitlines(keepends=True))) == read
    if not names:
        return
    assert read[0] == names
    for row, told in zip(rows, read[1:], strict=True):
        for name, entry in zip(names, told, strict=True):
            said = row.get(name)
            if isinstance(said, str):
                assert not any(part.strip(BEFORE).startswith(FORMULA) for part in re.split(r"[;\t\r\n]", entry))
                said = said.replace("\0", "␀")
                assert entry.replace("'", "") == said.replace("'", "")
                assert re.search(r"[=+\-@＝＋－＠]", said) or entry == said  # noqa: RUF001 -- wide ones, too
            else:
                assert entry == ("" if said is None else str(said))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param("=1+1", "'=1+1", id="start"),
        pytest.param("  \ufeff-1", "  \ufeff'-1", id="behind-what-is-skipped"),
        pytest.param('a;"=1+1', "a;\"'=1+1", id="semicolon-and-quotation-mark"),
        pytest.param("a\n- b\t@c", "a\n'- b\t'@c", id="line-and-tab"),
        pytest.param("a=b, -1; c", "a=b, -1; c", id="inside"),
        pytest.param(["a;=1", -1], '["a;\'=1",-1]', id="inside-a-list"),
        pytest.param("\n" * 100_000, "\n" * 100_000, id="long"),
    ],
)
def test_an_apostrophe_stands_before_what_would_be_computed(said: JsonValue, kept: str) -> None:
    """There and nowhere else, and the longest text takes a moment."""
    read = list(csv.reader(io.StringIO(to_safe_csv([{"a": said}]), newline="")))
    assert read == [["a"], [kept]]


def test_what_hides_is_shown_in_a_block() -> None:
    """Characters that turn or hide others stand there as JSON writes them."""
    hidden = "a\u202eb\u061c\u2066\x85\U000e0041"
    block = json_block({"a": hidden})
    assert "a\\u202eb\\u061c\\u2066\\u0085\\udb40\\udc41" in block
    assert json.loads(block.removeprefix("```json\n").removesuffix("\n```")) == {"a": hidden}
