"""Records whose identities are nearly the same, integrators that link them, and what people decided on them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.decisions import Decisions
from tests.integrators.strategies import SCALARS

NAMES: list[Any] = [
    *("Müller Verlag", "Muller Verlag", "Mueller Verlag", "MULLER  VERLAG", "Muller Verlg", "Verlag, Muller"),
    *("GPL 2.0", "GPL-2.0", "GPL 3.0", "GPL 20", "C", "C++", "1,000", "1000", 1000, "1.10", "1.1", "", None, ["x"]),
]
VERSIONS: list[Any] = ["1.1", "1.10", 2, "2", "May 1, 2024", "2024-05-01"]
LINKED: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(NAMES),
        "version": st.sampled_from(VERSIONS),
        "key": st.sampled_from(["item 0", "item 6", "wrong", 1, None]),
        "tags": st.lists(st.sampled_from(["x", "y"]), max_size=2),
        "meta": st.fixed_dictionaries({}, optional={"a": st.sampled_from(NAMES), "b": SCALARS}),
        "note": SCALARS,
    },
)
ANSWERS: st.SearchStrategy[Any] = LINKED | st.lists(LINKED | SCALARS, max_size=5)


@st.composite
def decisions(draw: st.DrawFn, identity: list[str]) -> Decisions:
    """Return decisions on pairs that may be there, or not, and may contradict one another."""
    fields = {"{key}": st.sampled_from(["item 0", "item 6", "item 12"]), "version": st.sampled_from(VERSIONS)}
    record = st.fixed_dictionaries(
        {field: fields.get(field, st.sampled_from(NAMES)) for field in identity},
        optional={} if "version" in identity else {"version": st.sampled_from([*VERSIONS, None])},
    )
    pairs = st.lists(st.tuples(record, record), max_size=4)
    choice = st.fixed_dictionaries(
        {"record": record, "field": st.sampled_from([*identity, "note", "tags", "key"]), "value": SCALARS}
    )
    return Decisions.model_validate(
        {"same": draw(pairs), "different": draw(pairs), "fields": draw(st.lists(choice, max_size=1))}
    )


@st.composite
def linkers(draw: st.DrawFn, *, evidence: bool = True) -> MergeRecords:
    """Return integrators that link records; those with `evidence` may look at other fields, too."""
    identity = draw(
        st.sampled_from([["name"], ["name"], ["name", "version"], ["meta.a"], ["{key}"], ["{key}", "name"]])
    )
    rules: dict[str, Any] = draw(
        st.dictionaries(st.sampled_from(["tags", "note"]), st.sampled_from(["union", "max", "majority"]))
    )
    if identity == ["name"]:
        rules |= draw(st.fixed_dictionaries({}, optional={"name": st.sampled_from(["longest", "majority", "min"])}))
    options: dict[str, Any] = {"identity": identity, "rules": rules, "aliases": draw(st.sampled_from([None, "x.yaml"]))}
    if identity != ["{key}"] and draw(st.integers(0, 3)):
        propose, sure = draw(st.sampled_from([(0.85, 0.95), (0.5, 0.7), (0.3, 0.3), (0.9, 1.0)]))
        fields = (
            draw(st.sampled_from([[], [], ["tags"], ["note"], ["version"], ["note", "meta.b"]])) if evidence else []
        )
        fields = [field for field in fields if field not in identity]
        options["match"] = {"sure": sure, "propose": propose, "fields": fields}
    return MergeRecords.model_validate(options).with_decisions(draw(decisions(identity)))
