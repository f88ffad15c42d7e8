"""Lists merged as sets: elements of one identity are one, traced and audited by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.audit.coverage import Trace
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.brief import Brief
from tests.integrators.said import entries, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

NONE: list[JsonValue] = []
ODD: list[JsonValue] = [[None, {}, [1]], [None]]
IN_ORDER: list[JsonValue] = [[1], None, {}]
BY_NAME = {"rule": "union", "identity": ["name"]}


def merger(**rules: object) -> MergeRecords:
    """Return an integrator that tells authors apart by name."""
    return MergeRecords.model_validate({"identity": ["name"], "rules": {"authors": BY_NAME, **rules}})


def merged(said: Sequence[JsonValue], **rules: object) -> Merge:
    """Return an audited merge of the authors that each answer says, the first one preferred."""
    outcomes = answers(said)
    integrator = merger(**rules)
    merge = integrator.merge([], outcomes)
    assert audit(merge, outcomes, [], integrator) == ()
    assert list(Trace(merge, outcomes, integrator).violations()) == []
    return merge


def answers(said: Sequence[JsonValue]) -> list[Outcome]:
    """Return the answers, the first one preferred."""
    return [say(f"{at}", {"name": "Paper", "authors": authors}, item_first=-at) for at, authors in enumerate(said)]


def authors(merge: Merge) -> JsonValue:
    """Return the authors of the one record."""
    [record] = entries(merge)
    assert isinstance(record, dict)
    return record["authors"]


@pytest.mark.parametrize(
    ("said", "rules", "expected"),
    [
        pytest.param(
            [[{"name": "Ada", "mail": "a"}], [{"name": " ada", "mail": "b", "age": 3}]],
            {},
            [{"age": 3, "mail": "a", "name": "Ada"}],
            id="one-by-identity",
        ),
        pytest.param(
            [[{"name": "Ada", "mail": "a"}], [{"name": "ada", "mail": "bb"}]],
            {"authors.mail": "longest"},
            [{"mail": "bb", "name": "Ada"}],
            id="a-rule-for-a-field",
        ),
        pytest.param(
            [[{"name": "Bob"}, "et al.", {"name": 2}], [{"name": "Ada"}, {"mail": "x"}, "et al."]],
            {},
            [{"name": 2}, {"name": "Ada"}, {"name": "Bob"}, "et al.", {"mail": "x"}],
            id="in-order-of-identity",
        ),
        pytest.param(
            [[{"name": "Bob"}, "et al."], [{"name": "Ada"}, {"name": "bob"}]],
            {"authors": {"rule": "keep_all", "identity": ["name"]}},
            [{"name": "Bob"}, "et al.", {"name": "Ada"}],
            id="in-order-of-preference",
        ),
        pytest.param([{"name": "Ada"}, [{"name": "ada", "age": 1}]], {}, [{"age": 1, "name": "Ada"}], id="no-list"),
        pytest.param([NONE, [{"name": "Ada"}]], {}, [{"name": "Ada"}], id="none-and-some"),
        pytest.param([NONE, NONE], {}, NONE, id="none"),
        pytest.param([None, None], {}, None, id="null"),
        pytest.param([None, ["x"]], {}, ["x"], id="null-and-some"),
        pytest.param(ODD, {}, IN_ORDER, id="odd-elements"),
        pytest.param(
            [[{"name": "Ada", "at": [{"name": "MIT"}]}], [{"name": "ada", "at": [{"name": "mit", "city": "C"}]}]],
            {"authors.at": BY_NAME},
            [{"at": [{"city": "C", "name": "MIT"}], "name": "Ada"}],
            id="sets-in-sets",
        ),
        pytest.param(
            [[{"name": "Ada", "tags": ["x"]}], [{"name": "ada", "tags": ["y"]}]],
            {"authors.tags": "union"},
            [{"name": "Ada", "tags": ["x", "y"]}],
            id="gathered-inside",
        ),
        pytest.param(
            [[{"name": "Ada", "x": 1}, {"name": "ada", "x": 2}]],
            {},
            [{"name": "Ada", "x": 1}],
            id="twice-in-one-answer",
        ),
    ],
)
def test_elements_of_one_identity_become_one(
    said: list[JsonValue], rules: dict[str, object], expected: JsonValue
) -> None:
    """Elements are merged like records; what has no identity stands once; the audit agrees."""
    merge = merged(said, **rules)
    assert authors(merge) == expected
    again = merger(**rules).merge([], [say("all", entries(merge))])
    assert entries(again) == entries(merge)


def test_fields_of_elements_have_rows_of_their_own() -> None:
    """A row's path leads into the element; a list without elements stands among what was removed."""
    merge = merged([[{"name": "Ada", "mail": "a"}], [{"name": "ada", "mail": "b"}, "x"], []])
    rows = {row.path: (row.rule, row.winner, [loser.value for loser in row.losers]) for row in merge.fields}
    assert rows == {
        "/records/0/authors": ("union", [{"mail": "a", "name": "Ada"}, "x"], [[]]),
        "/records/0/authors/0/mail": ("priority", "a", ["b"]),
        "/records/0/authors/0/name": ("priority", "Ada", ["ada"]),
        "/records/0/authors/1": ("union", "x", []),
        "/records/0/name": ("priority", "Paper", []),
    }
    assert [(row.item, row.disposition) for row in merge.ledger] == [
        ("0", "merged"),
        ("1", "merged"),
        ("2", "overridden"),
    ]
    assert merge.ledger[2].reason == "rule 'union' on field 'authors'"


def test_conflicts_inside_elements_are_flagged() -> None:
    """A flag leads into the element; that a list has more elements is no conflict."""
    said = answers([[{"name": "Ada", "mail": "a"}, {"name": "Bob"}], [{"name": "ada", "mail": "b"}]])
    integrator = merger().model_copy(update={"conflicts": "flag"})
    merge = integrator.merge([], said)
    assert [(flag.path, flag.kind, flag.text) for flag in merge.flags] == [
        ("/records/0/authors/0/mail", "conflict", "a")
    ]
    assert audit(merge, said, [], integrator) == ()


def test_an_object_taken_whole_takes_its_list_along() -> None:
    """Where the object around a list isn't merged key by key, neither is the list, and nothing is lost."""
    said = [
        say("a", {"name": "n", "meta": {"authors": [{"name": "Ada"}]}}, item_first=1),
        say("b", {"name": "n", "meta": "none"}),
    ]
    integrator = MergeRecords.model_validate({"identity": ["name"], "rules": {"meta.authors": BY_NAME}})
    for outcomes in (said, [said[0], say("b", {"name": "n", "meta": {"authors": [{"name": "ada", "x": 1}]}})]):
        merge = integrator.merge([], outcomes)
        assert audit(merge, outcomes, [], integrator) == ()
    assert entries(merge) == [{"meta": {"authors": [{"name": "Ada", "x": 1}]}, "name": "n"}]


TWO: list[JsonValue] = [
    [{"name": "Ada", "mail": "a"}, {"name": "Bob", "mail": "b"}, "et al."],
    [{"name": "ada", "mail": "aa"}],
    [],
]


def replaced(merge: Merge, path: str, new: JsonValue, at: Callable[[Any], None]) -> Merge:
    """Return a merge with another value somewhere, and in the row about it and the ones around it."""
    value: Any = merge.model_copy(deep=True).value
    at(value["records"][0]["authors"])
    rows = [
        row.model_copy(
            update={"winner": new if row.path == path else value["records"][0]["authors"]}
            if row.path in (path, "/records/0/authors")
            else {}
        )
        for row in merge.fields
    ]
    return merge.model_copy(update={"value": value, "fields": tuple(rows)})


def set_mail(found: Any) -> None:  # noqa: ANN401 -- the authors
    """Give one author the address of the other."""
    found[0]["mail"] = "b"


def set_name(found: Any) -> None:  # noqa: ANN401 -- the authors
    """Give one author the name of the other."""
    found[0]["name"] = "Bob"


def set_rest(found: Any) -> None:  # noqa: ANN401 -- the authors
    """Say something else of the rest."""
    found[2] = "and others"


@pytest.mark.parametrize(
    ("path", "new", "change"),
    [
        pytest.param("/records/0/authors/0/mail", "b", set_mail, id="another-element's-value"),
        pytest.param("/records/0/authors/0/name", "Bob", set_name, id="another-element's-identity"),
        pytest.param("/records/0/authors/2", "and others", set_rest, id="never-said"),
    ],
)
def test_tampering_inside_an_element_is_found_by_tracing_alone(
    path: str, new: JsonValue, change: Callable[[Any], None]
) -> None:
    """What was said of one element can't pass for what was said of another, whoever said it."""
    outcomes, integrator = answers(TWO), merger()
    merge = integrator.merge([], outcomes)
    assert list(Trace(merge, outcomes, integrator).violations()) == []
    assert list(Trace(replaced(merge, path, new, change), outcomes, integrator).violations())


@pytest.mark.parametrize("path", ["/records/0/authors/0/mail", "/records/0/authors/1/name", "/records/0/authors/2"])
def test_a_row_or_an_element_that_is_gone_is_missed_by_tracing_alone(path: str) -> None:
    """A dropped row leaves a value untraced; a dropped element, with its rows, loses what was said."""
    outcomes, integrator = answers(TWO), merger()
    merge = integrator.merge([], outcomes)
    unrowed = merge.model_copy(update={"fields": tuple(row for row in merge.fields if row.path != path)})
    assert list(Trace(unrowed, outcomes, integrator).violations())
    cut: Any = merge.model_copy(deep=True).value
    del cut["records"][0]["authors"][1:]
    left = [
        row.model_copy(update={"winner": cut["records"][0]["authors"]} if row.path == "/records/0/authors" else {})
        for row in merge.fields
        if not row.path.startswith(("/records/0/authors/1", "/records/0/authors/2"))
    ]
    gone = merge.model_copy(update={"value": cut, "fields": tuple(left)})
    assert {found.law for found in Trace(gone, outcomes, integrator).violations()} == {"recall"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"rules": {"a": {"rule": "max", "identity": ["b"]}}}, "for the rules 'union'", id="picking"),
        pytest.param({"default": BY_NAME}, "unknown key 'identity'", id="default"),
        pytest.param({"rules": {"a": BY_NAME, "a.name": "union"}}, "'a.name' belongs to the identity", id="identity"),
        pytest.param(
            {"rules": {"a": {**BY_NAME, "identity": ["b..c"]}}}, "'b..c' is no path to a field", id="bad-path"
        ),
    ],
)
def test_unusable_sets_are_refused(options: dict[str, Any], message: str) -> None:
    """What can't be merged as a set is refused when the integrator is made."""
    with pytest.raises(ValidationError, match=message):
        MergeRecords.model_validate({"identity": ["name"], **options})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        pytest.param({"authors": {**BY_NAME, "identity": ["nmae"]}}, "did you mean 'name'", id="identity"),
        pytest.param({"authors": BY_NAME, "authors.mial": "max"}, "'authors.mial' .*did you mean 'mail'", id="field"),
        pytest.param({"authors": BY_NAME, "authors.mail": "max"}, None, id="fine"),
        pytest.param({"note": BY_NAME, "note.any": "max"}, None, id="any-list"),
    ],
)
def test_preflight_looks_into_elements(rules: dict[str, object], message: str | None) -> None:
    """Fields that no element can have are noticed before anything is spent."""
    author: dict[str, Any] = {"type": "object", "properties": {"name": {}, "mail": {}}}
    properties: dict[str, Any] = {"name": {}, "authors": {"type": "array", "items": author}, "note": {"type": "array"}}
    brief = Brief.model_validate({"name": "terms", "instructions": "Read.", "output": {"properties": properties}})
    integrator = MergeRecords.model_validate({"identity": ["name"], "rules": rules})
    if message is None:
        integrator.preflight([brief])
    else:
        with pytest.raises(JobError, match=message):
            integrator.preflight([brief])
