"""Outcomes that are hard to merge: equal identities, ties, gaps, wrong shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.outcome import Failure, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_records.field_rules import Claim


def tally(claims: Sequence[Claim]) -> JsonValue:
    """A rule of the user's own that says what nobody said."""
    return {"count": len({claim.text for claim in claims})}


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([1.0, 2.5, 10**400, "", "MIT", "mit", " MIT ", "a/b~c", "é", "2024-05-01", "__class__"]),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b/c", "", "value", "0"]), inner, max_size=3)
    ),
    max_leaves=5,
)
PERSON: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["Ada", " ada", "Bob", "", None, 1.0, 1]),
        "mail": st.sampled_from(["a", "b", "c", None]),
        "tags": st.lists(st.sampled_from(["x", "y"]), max_size=2),
        "roles": st.lists(st.fixed_dictionaries({"at": st.sampled_from(["p", "P", "q"]), "as": SCALARS}), max_size=2),
    },
)
PEOPLE: st.SearchStrategy[Any] = st.lists(PERSON | SCALARS, max_size=4) | PERSON | SCALARS
RECORDS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["MIT", "mit ", "\uff2d\uff29\uff34", "Apache", "", None, 1, 1.0, True, ["x"]]),
        "version": st.sampled_from([1, 1.0, 2, "1"]),
        "date": st.sampled_from(["2024-05-01", "2024-05-01T10:00:00+02:00", 2023, "soon", None]),
        "tags": st.lists(st.sampled_from(["x", "y", 1, 1.0]), max_size=3) | SCALARS,
        "meta": st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON, max_size=3) | SCALARS,
        "note": JSON,
        "__class__": SCALARS,
        "people": PEOPLE,
    },
)
VALUES: st.SearchStrategy[Any] = st.one_of(
    RECORDS,
    st.lists(RECORDS | JSON, max_size=4),
    st.fixed_dictionaries({"found": st.lists(RECORDS, max_size=3)}, optional={"more": JSON}),
    JSON,
)


@st.composite
def outcomes(draw: st.DrawFn, values: st.SearchStrategy[Any] = VALUES) -> list[Outcome]:
    """Return the outcomes of two briefs and a few items, some of them without an answer."""
    made: list[Outcome] = []
    for brief in ("terms", "facts"):
        for at in range(draw(st.integers(0, 4))):
            status = draw(st.sampled_from(["succeeded"] * 6 + ["failed", "skipped"]))
            answered = status == "succeeded"
            made.append(
                Outcome.model_validate(
                    {
                        "brief": brief,
                        "item": f"item {at * 6}",
                        "status": status,
                        "value": draw(values) if answered else None,
                        "error": None if answered else Failure(kind="timeout", message="No answer."),
                        "brief_priority": draw(st.integers(0, 1)),
                        "item_priority": draw(st.integers(0, 1)),
                    }
                )
            )
    return made


PERSON_RULES: dict[str, st.SearchStrategy[Any]] = {
    "people.mail": st.sampled_from(["longest", "trust", {"rule": "max", "conflicts": "flag"}]),
    "people.tags": st.sampled_from(["union", {"conflicts": "keep_all"}]),
    "people.roles": st.just({"rule": "union", "identity": ["at"]}),
}
"""Rules for the elements of a list that is merged as a set."""
SETS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"people": st.sampled_from([{"rule": rule, "identity": ["name"]} for rule in ("union", "keep_all")])},
    optional=PERSON_RULES,
)


@st.composite
def integrators(draw: st.DrawFn, *, computing: bool = True) -> MergeRecords:
    """Return integrators of many rules; `computing` ones may have a function, too."""
    names = ["priority", "majority", "longest", "max", "min", "union", "keep_all", "trust"]
    rules: st.SearchStrategy[Any] = st.sampled_from(
        [
            *names,
            {"rule": "newest", "by": "date"},
            {"rule": "trust", "of": "item"},
            {"rule": "max", "conflicts": "keep_all"},
            {"conflicts": "flag"},
            *([tally] if computing else []),
        ]
    )
    fields = draw(st.dictionaries(st.sampled_from(["tags", "note", "meta.b", "meta.c", "date"]), rules, max_size=4))
    if draw(st.booleans()):
        fields["name"] = draw(
            st.sampled_from(["majority", "longest", "max", "trust", {"rule": "newest", "by": "date"}])
        )
    if draw(st.booleans()):
        fields |= draw(SETS)
    choices = [
        {"record": {"name": "mit"}, "field": draw(st.sampled_from(["tags", "version", "people", "date", "meta.b"]))},
    ]
    decided = [{**choice, "value": draw(SCALARS)} for choice in choices if draw(st.booleans())]
    return MergeRecords.model_validate(
        {
            "identity": draw(st.sampled_from([["name"], ["name", "version"], ["meta.a"]])),
            "rules": fields,
            "default": draw(rules),
            "conflicts": draw(st.sampled_from(["resolve", "keep_all", "flag"])),
            "records": draw(st.sampled_from(["", "found"])),
        }
    ).with_decisions(Decisions.model_validate({"fields": decided}))
