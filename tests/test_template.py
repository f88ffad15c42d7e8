"""Fields of an item inside the text of a brief."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.errors import BriefError
from prefect_dispatch.models.item import Item, escape_template, look_up, placeholders, render

if TYPE_CHECKING:
    from pydantic import JsonValue

ITEM = Item(
    key="k",
    value={"title": "T", "meta": {"year": 1999, "tags": ["x", "y"]}, "none": None, "é-1": "accent", "text": "{title}"},
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("{title} of {meta.year}", "T of 1999", id="fields"),
        pytest.param("{key}", "k", id="key"),
        pytest.param("{meta}", '{"tags":["x","y"],"year":1999}', id="a-mapping-as-json"),
        pytest.param("{meta.tags.1}", "y", id="an-element"),
        pytest.param("{none}", "null", id="nothing-as-json"),
        pytest.param("{{title}} {{{title}}}", "{title} {{title}}", id="braces-that-are-meant"),
        pytest.param("{'a': 1} {} { title } {1} {a,b}", "{'a': 1} {} { title } {1} {a,b}", id="other-braces"),
        pytest.param("{text}", "{title}", id="a-value-is-no-template"),
        pytest.param("{title.__class__}", None, id="no-attribute"),
        pytest.param("{meta.tags.2}", None, id="no-such-element"),
        pytest.param("{title!r} {title:>9} {title[0]}", "{title!r} {title:>9} {title[0]}", id="no-format-language"),
        pytest.param("{subject}", None, id="no-such-field"),
    ],
)
def test_render(text: str, expected: str | None) -> None:
    """A placeholder is a plain look-up in the item's JSON, and nothing else is touched."""
    if expected is None:
        with pytest.raises(BriefError, match="has no value in item 'k'; the item offers 'key', 'meta'"):
            render(text, ITEM)
    else:
        assert render(text, ITEM) == expected


def test_an_item_without_fields_offers_its_key() -> None:
    """Text as an item's value has a key and no fields."""
    item = Item(key="a.txt", value="text")
    assert render("{key}", item) == "a.txt"
    with pytest.raises(BriefError, match=r"the item offers 'key'\. Write \{\{title\}\} if braces are meant\.$"):
        render("{title}", item)


def test_a_field_named_key_comes_first() -> None:
    """A field of the item's own called `key` is what `{key}` means."""
    assert render("{key}", Item(key="outer", value={"key": "inner"})) == "inner"


def test_quoted_values() -> None:
    """A value can be made to stand for itself in another language; the text around it stays."""
    assert render("*/{key}", Item(key="[id]", value=1), glob.escape) == "*/[[]id]"


@given(value=st.text(), around=st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"])))
def test_a_value_is_put_in_as_it_is(value: str, around: str) -> None:
    """Whatever a field says comes out unchanged and changes nothing around it."""
    item = Item(key="k", value={"field": value})
    assert render(f"{around}{{field}}{around}", item) == f"{around}{value}{around}"


JSON: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(text=st.text("{}abk.0-y "), value=JSON)
def test_no_text_breaks_the_reading(text: str, value: JsonValue) -> None:
    """A text is rendered if and only if all its placeholders have values; nothing else can happen."""
    item = Item(key="k", value=value)
    try:
        for path in placeholders(text):
            look_up(item, path)
    except BriefError:
        with pytest.raises(BriefError):
            render(text, item)
    else:
        render(text, item)


@given(st.text(alphabet="{}ab. _-", max_size=30))
def test_a_literal_text_renders_to_itself(text: str) -> None:
    """Whatever braces are in a text that isn't a template, they come out as they are."""
    assert render(escape_template(text), ITEM) == text
