"""YAML that holds JSON: what is written is read back, and what JSON can't say is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.serialization.strict_yaml import (
    MAX_BYTES,
    MAX_CHARACTERS,
    YamlError,
    decode,
    dump_line,
    load_documents,
    load_with_positions,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(values)
@settings(max_examples=50)
def test_a_line_says_what_the_value_says(value: object) -> None:
    """Read back it is the same, type for type, and no character of it is hidden."""
    line = dump_line(cast("JsonValue", value))  # which hypothesis has no type for
    assert line.isprintable()
    assert repr(load_documents(line)) == repr([value])


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"k" * 2000: 1, "l": {"m" * 2000: []}}, id="long-keys"),
        pytest.param("\u202e\u061c\U000e0001\x85\ufffe", id="hidden"),
        pytest.param(["1:30", "2024-05-01", "yes", "~", "1e20", "<<", "="], id="what-yaml-takes-for-else"),
    ],
)
def test_hard_cases_are_read_back(value: JsonValue) -> None:
    """What YAML has rules of its own for."""
    line = dump_line(value)
    assert line.isprintable()
    assert load_documents(f"---\n{line}\n---\n{line}") == [value, value]


def test_what_looks_like_more_than_json_is_a_text() -> None:
    """A date is what an answer would say; in quotation marks, a merge key is a key."""
    assert load_documents('a: 2024-05-01\n"<<": {b: 1}\nc: =') == [{"a": "2024-05-01", "<<": {"b": 1}, "c": "="}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: 1\nb: {c: 1, c: 2}", "line 2: b: the key 'c' stands twice; put all of it", id="twice"),
        pytest.param(
            "a:\n  1: 2", "line 2: a: the key 1 is read as the number 1, and a key is a text", id="number-key"
        ),
        pytest.param("no: 2", r"line 1: the key no is read as false \(yes or no\)", id="bool-key"),
        pytest.param("? [a]\n: 1", "a key is a text, and here is a list or a mapping", id="list-as-key"),
        pytest.param("- &a [b]\n- *a : 1", r"line 2: \[1\]: a key is a text, and here is a list", id="alias-as-key"),
        pytest.param("a: {{x}}", "line 1: a: a key is a text, .* braces in quotation marks", id="template"),
        pytest.param("\n- -.inf", r"line 2: \[0\]: -.inf is no number that JSON has", id="infinity"),
        pytest.param("1.0e+999", "is no number that JSON has", id="too-large"),
        pytest.param(
            "a: " + "9" * 5000, r"line 1: a: the number has too many digits \(5,000 characters\)", id="digits"
        ),
        pytest.param("0x" + "f" * 4000, "line 1: the number has too many digits", id="hexadecimal-digits"),
        pytest.param("1:" + "1:" * 3000 + "1", "line 1: the number has too many digits", id="sexagesimal-digits"),
        pytest.param("!!int many", "line 1: 'many' is no int, as its tag !!int demands; leave the tag out", id="tag"),
        pytest.param("!!bool many", "line 1: 'many' is no bool, as its tag", id="bool-tag"),
        pytest.param("!!binary aGk=", "the tag !!binary can't be used here; leave it out", id="binary"),
        pytest.param("a: !!set {b}", "line 1: a: the tag !!set can't be used here", id="set"),
        pytest.param("!!python/object:os.system x", "the tag !!python/object:os.system can't be used", id="object"),
        pytest.param("a: !wow", "line 1: a: the tag !wow can't be used here; .* exclamation mark", id="own-tag"),
        pytest.param("&a [*a]", r"line 1: \[0\]: \*a stands inside of what it stands for; write it out", id="ring"),
        pytest.param("a: &a {<<: *a}", r"line 1: a: \*a stands inside of what it stands for", id="merge-ring"),
        pytest.param(
            "a: *b", r"line 1: a: \*b is an alias, and no anchor &b stands before it; put a text", id="unknown"
        ),
        pytest.param("a: &x 1\nb: &x 2", "line 2: b: the anchor &x is defined twice", id="anchor-twice"),
        pytest.param("a: 1\n---\nb: *a", r"line 3: b: \*a is an alias, and no anchor", id="of-another-document"),
        pytest.param("a: {<<: 3}", r"line 1: a: << takes a mapping, .* and not the number 3", id="merge-a-number"),
        pytest.param("a: {<<: [{}, null]}", r"line 1: a: << takes a mapping, .* not nothing \(null\)", id="merge-null"),
        pytest.param(
            "{<<: {a: 1}, <<: {b: 1}}", "line 1: the key '<<' stands twice; write one with a list", id="merges"
        ),
        pytest.param("a: &a {b: 1}\n<<: *a\nb: 1\nb: 2", "line 4: the key 'b' stands twice", id="twice-beside-a-merge"),
        pytest.param('"\\ud800"', "line 1: it holds half of a character", id="half-a-character"),
        pytest.param("a: \ud800", "it holds half of a character", id="raw-half-a-character"),
        pytest.param("[" * 150 + "]" * 150, "line 1: it is nested more than 110 deep; make it flatter", id="deep"),
        pytest.param("[" * 20_000, "nested more than 110 deep", id="bottomless"),
        pytest.param("\na: b\x00b", r"line 2: the character U\+0000 can't stand in YAML", id="nul"),
        pytest.param("a: [", "line 1: not YAML: the text ends within a list or a mapping; close it", id="open"),
        pytest.param(
            "a: [1, 2\nb: 3", "line 2: not YAML: the list that begins in line 1 is not closed here", id="list"
        ),
        pytest.param("- {a: 1\n- 3", "not YAML: the mapping that begins in line 1 is not closed here", id="mapping"),
        pytest.param("a: 'x\nb: 1", "line 2: not YAML: the quotation mark in line 1 is never closed", id="quotation"),
        pytest.param("a:\n\tb: 1", "line 2: not YAML: a tab stands where YAML wants spaces", id="tab"),
        pytest.param("a: @b", "line 1: not YAML: no text can begin with @; put it in quotation marks", id="at"),
        pytest.param("a: b: c", "line 1: not YAML: a colon with a space behind it can't stand here", id="colon"),
        pytest.param("glob: *.txt", r"line 1: not YAML: a text that begins with \* or & has to", id="glob"),
        pytest.param("a: 'it's'", "line 1: not YAML: a text goes on behind its closing quotation mark", id="goes-on"),
        pytest.param('a: "C:\\path"', "line 1: not YAML: after a backslash in double .* comes no p", id="escape"),
        pytest.param("- a\nb: 1", "line 2: not YAML: this line fits neither the indentation nor the kind", id="mixed"),
        pytest.param("a: 1\nb", "line 2: not YAML: a key without a colon stands in line 2", id="no-colon"),
        pytest.param("%YAML 3\n", "line 1: not YAML: expected a digit or '.', but found", id="directive"),
    ],
)
def test_what_is_no_json_is_refused(text: str, message: str) -> None:
    """In one sentence on one line, with the line, the path and the way out."""
    with pytest.raises(YamlError, match=message) as refused:
        load_documents(text)
    assert str(refused.value).isprintable()


def _bomb(levels: int, width: int = 10) -> str:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels))]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            _bomb(10), r"line \d: a\d\[\d\]: with \*a\d, the aliases up to here .* 2,000,000", id="exponential"
        ),
        pytest.param(
            "a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 100 + "]", r"with \*a, the aliases", id="quadratic"
        ),
        pytest.param(_bomb(3000, 1), "nested more than 110 deep", id="chain"),
        pytest.param(
            "a0: &a0 {k: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: *a{n - 1}, k{n}: 1}}" for n in range(1, 3000)),
            "nested more than|the aliases",
            id="merges",
        ),
        pytest.param(
            "a: " + "b" * MAX_CHARACTERS, "longer than 20,000,000 characters; keep the items in a file", id="huge"
        ),
    ],
)
def test_a_few_lines_cannot_fill_the_memory(text: str, message: str) -> None:
    """A text whose aliases say more than it does itself is refused before that is built."""
    with pytest.raises(YamlError, match=message):
        load_documents(text)


def test_honest_aliases_and_merge_keys_work() -> None:
    """An alias is a copy; in a merge, own keys come first, and of several mappings the earlier."""
    text = """
    base: &base {retries: 1, params: {a: 1}}
    more: &more {retries: 2, reasks: 2}
    one: *base
    two: {<<: *base, retries: 5}
    three:
      own: 3
      <<: [*base, *more]
    """
    (found,) = load_documents(text)
    base = {"retries": 1, "params": {"a": 1}}
    assert found == {
        "base": base,
        "more": {"retries": 2, "reasks": 2},
        "one": base,
        "two": {**base, "retries": 5},
        "three": {"own": 3, **base, "reasks": 2},
    }
    cast("Any", found)["one"]["params"]["a"] = 2
    assert cast("Any", found)["base"]["params"] == {"a": 1}


def test_json_is_yaml() -> None:
    """Tabs and pairs of escapes are read as JSON has them."""
    value: dict[str, Any] = {"a": [1.5, None, True, "😀\t"], "b": {}}
    assert load_documents(json.dumps(value, indent=1)) == [value]
    assert load_documents(json.dumps(value, indent="\t", ensure_ascii=False)) == [value]
    assert load_documents("") == []
    assert load_documents("a: 1_000\nb: !!str 5\nc: 0x1f\nd: ~") == [{"a": 1000, "b": "5", "c": 31, "d": None}]


def test_every_part_has_its_line() -> None:
    """That of its key, or where it begins; what isn't there has the line of what it would be in."""
    (_, second) = load_with_positions(
        "a: 1\n---\nbriefs:\n- name: x\n  output:\n    type: text\nb: &b [1]\nc: {<<: {d: *b}}"
    )
    where = [
        ["briefs", 0, "output", "type"],
        ["briefs", 0, "output"],
        ["briefs", 0, "none", 1],
        ["c", "d"],
        ["a", 0],
        [],
    ]
    assert [str(second.position.find(cast("list[str | int]", path))) for path in where] == [
        "line 6",
        "line 5",
        "line 4",
        "line 8",
        "line 2",
        "line 2",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_begin_with_a_mark(encoding: str) -> None:
    """UTF-8 with and without a byte order mark, and UTF-16 with one."""
    assert load_documents(decode("a: ä".encode(encoding))) == [{"a": "ä"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n", "line 1: it is not UTF-8 text: the byte 0x89 can't stand there; save it as UTF-8"),
        ("a: 1\nb: é".encode("latin-1"), "line 2: it is not UTF-8 text: the byte 0xe9"),
        (b"\xff\xfea", "begins with the byte order mark of UTF-16, but is not UTF-16 text; save it as UTF-8"),
        (b" " * (MAX_BYTES + 1), "longer than 20,000,000 characters"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, message: str) -> None:
    """With the line, the byte and the way out."""
    with pytest.raises(YamlError, match=message):
        decode(content)
