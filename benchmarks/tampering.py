"""Measures how many lies of an integrator the audit finds, per kind, and how often it accuses an honest one.

`python -m benchmarks.tampering [CASES] [--integrators NAME …] [--missed]` merges random inputs by every built-in
integrator, tampers with each merge in many ways, and audits what comes of it. The integrator lies in the same way on
every merge: what it merges again for the audit is the same lie. It either derives from the built-in class, or hands in
its second merge directly. A lie is found if the audit has a violation, or the merge is none at all. The seed is fixed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pydantic import ValidationError

from benchmarks.merge_cases import CASES, MergeCase, create_case, random_consensus, random_records_integrator
from prefect_dispatch import Consensus, MergeRecords
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.base import AskingIntegrator
from prefect_dispatch.integrators.run_merge import merge_digest, run_integrator
from prefect_dispatch.models.ledger import Document, FieldRow, Flag, LedgerRow, Loser, Merge, Proposal, Ref, Table
from prefect_dispatch.serialization.json_values import deep_copy, iter_parts, pointer, resolve_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models.ledger import Violation


Tampering = Callable[[Random, MergeCase, Merge], Merge | None]
"""Returns a merge that was tampered with; None where there is nothing to tamper with in this way."""


class Lie(NamedTuple):
    """One tampering: its kind, and the function that tampers."""

    kind: str
    tamper: Tampering


# Values: each change is made in the value alone, or in the field rows about it, too.


def _set_at(value: Any, path: str, new: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """Return a copy of a value with another part at a path."""
    if not path:
        return new
    copy = deep_copy(value)
    parent, _ = resolve_pointer(copy, path.rpartition("/")[0])
    token = path.rpartition("/")[2].replace("~1", "/").replace("~0", "~")
    holder: Any = parent
    holder[int(token) if isinstance(holder, list) else token] = new
    return copy


def _with_value(rng: Random, merge: Merge, value: JsonValue, moved: Callable[[str], list[str]] | None = None) -> Merge:
    """Return a merge with another value; in two cases of three, its field rows agree with that.

    Args:
        rng: The source of chance.
        merge: The merge.
        value: The new value.
        moved: Returns where the part at a path is in the new value; by default where it was.
    """
    if rng.random() < 1 / 3:
        return merge.model_copy(update={"value": value})
    rows: list[FieldRow] = []
    for row in merge.fields:
        for path in moved(row.path) if moved else [row.path]:
            try:
                winner, _ = resolve_pointer(value, path)
            except LookupError:
                continue
            rows.append(row.model_copy(update={"path": path, "winner": winner}))
    return merge.model_copy(update={"value": value, "fields": tuple(rows)})


def _parts(merge: Merge, wanted: Callable[[JsonValue], bool]) -> list[tuple[str, Any]]:
    return [(path, part) for path, part in iter_parts(merge.value) if wanted(part)]


def _alter(rng: Random, value: JsonValue) -> JsonValue:
    """Return another value, mostly of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + rng.choice([1, -1, 10, 0.5])
    if isinstance(value, str):
        return _alter_text(rng, value)
    others: list[JsonValue] = ["invented", 7, True]
    return rng.choice(others)


def _alter_text(rng: Random, text: str) -> str:
    """Return another text: a figure, a word or a character is changed, or one is added."""
    figures = [*re.finditer(r"\d", text)]
    if figures and rng.random() < 0.5:
        at = rng.choice(figures).start()
        return (
            f"{text[:at]}{(int(text[at], 10) + rng.randint(1, 9)) % 10 if text[at].isdecimal() else 7}{text[at + 1 :]}"
        )
    words = [*re.finditer(r"\w+", text)]
    if words and rng.random() < 0.7:
        word = rng.choice(words)
        return f"{text[: word.start()]}{rng.choice(['never', 'all', 'invented', 'x'])}{text[word.end() :]}"
    return f"{text} More." if rng.random() < 0.5 or not text else text[:-1]


def change_leaf(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Change a leaf."""
    leaves = _parts(merge, lambda part: not isinstance(part, (list, dict)) or not part)
    if not leaves:
        return None
    path, leaf = rng.choice(leaves)
    others = [other for _, other in leaves if type(other) is type(leaf) and other != leaf]
    new = rng.choice(others) if others and rng.random() < 0.5 else _alter(rng, leaf)
    return _with_value(rng, merge, _set_at(merge.value, path, new))


def change_number_type(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Write an integer as a float, or the other way round."""
    numbers = _parts(merge, lambda part: isinstance(part, (int, float)) and not isinstance(part, bool))
    whole = [(path, part) for path, part in numbers if part == int(part)]
    if not whole:
        return None
    path, number = rng.choice(whole)
    new = float(number) if isinstance(number, int) else int(number)
    return _with_value(rng, merge, _set_at(merge.value, path, new))


def _lists(merge: Merge, least: int = 1) -> list[tuple[str, list[Any]]]:
    return [(path, part) for path, part in iter_parts(merge.value) if isinstance(part, list) and len(part) >= least]


def _reorder(rng: Random, merge: Merge, path: str, parts: Sequence[Any], places: Sequence[int]) -> Merge:
    """Return a merge in which a list has other elements of its own: those at some places.

    Args:
        rng: The source of chance.
        merge: The merge.
        path: The path of the list.
        parts: The list.
        places: For each new element, its place in the old list.
    """
    new = [deep_copy(parts[at]) for at in places]

    def moved(row: str) -> list[str]:
        head, _, tail = row.removeprefix(f"{path}/").partition("/")
        if not row.startswith(f"{path}/"):
            return [row]
        return [f"{path}/{to}{'/' if tail else ''}{tail}" for to, at in enumerate(places) if str(at) == head]

    return _with_value(rng, merge, _set_at(merge.value, path, new), moved)


def repeat_element(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Repeat an element of a list."""
    if not (lists := _lists(merge)):
        return None
    path, parts = rng.choice(lists)
    at = rng.randrange(len(parts))
    return _reorder(rng, merge, path, parts, sorted([*range(len(parts)), at]))


def drop_element(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Drop an element of a list."""
    if not (lists := _lists(merge)):
        return None
    path, parts = rng.choice(lists)
    gone = rng.randrange(len(parts))
    return _reorder(rng, merge, path, parts, [at for at in range(len(parts)) if at != gone])


def swap_elements(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Swap two elements of a list."""
    if not (lists := _lists(merge, 2)):
        return None
    path, parts = rng.choice(lists)
    places = [*range(len(parts))]
    one, two = rng.sample(places, 2)
    places[one], places[two] = two, one
    return _reorder(rng, merge, path, parts, places)


def add_element(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Add an invented element to a list."""
    lists = [(path, part) for path, part in iter_parts(merge.value) if isinstance(part, list)]
    if not lists:
        return None
    path, parts = rng.choice(lists)
    new = _alter(rng, rng.choice(parts)) if parts else "invented"
    return _with_value(rng, merge, _set_at(merge.value, path, [*parts, new]))


def _objects(merge: Merge) -> list[tuple[str, dict[str, Any]]]:
    return [(path, part) for path, part in iter_parts(merge.value) if isinstance(part, dict) and part]


def rename_key(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Rename a key of an object."""
    if not (objects := _objects(merge)):
        return None
    path, parts = rng.choice(objects)
    old = rng.choice(sorted(parts))
    new = rng.choice([f"{old}x", "renamed", old.upper() or "x"])
    if new in parts:
        return None

    def moved(row: str) -> list[str]:
        start = path + pointer(old)
        return [path + pointer(new) + row[len(start) :] if f"{row}/".startswith(f"{start}/") else row]

    renamed = {new if name == old else name: part for name, part in parts.items()}
    return _with_value(rng, merge, _set_at(merge.value, path, renamed), moved)


def drop_key(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Drop a key of an object."""
    if not (objects := _objects(merge)):
        return None
    path, parts = rng.choice(objects)
    gone = rng.choice(sorted(parts))
    return _with_value(
        rng, merge, _set_at(merge.value, path, {name: part for name, part in parts.items() if name != gone})
    )


def add_key(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Add a key to an object."""
    objects = [(path, part) for path, part in iter_parts(merge.value) if isinstance(part, dict)]
    if not objects:
        return None
    path, parts = rng.choice(objects)
    new = deep_copy(rng.choice([None, "invented", 1, *parts.values()]))
    return _with_value(rng, merge, _set_at(merge.value, path, {**parts, "added": new}))


def change_prose(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Change a text of several words."""
    if not (texts := _parts(merge, lambda part: isinstance(part, str) and part.count(" ") > 1)):
        return None
    path, text = rng.choice(texts)
    return _with_value(rng, merge, _set_at(merge.value, path, _alter_text(rng, text)))


# Rows of tuples in a merge: ledger, fields, flags, proposals, tables.


def _change_row(rng: Random, merge: Merge, name: str, change: Callable[[Any], Any]) -> Merge | None:
    """Return a merge with one changed row of a part of it; `change` returns None for a row that it can't change."""
    rows: Sequence[Any] = getattr(merge, name)
    for at in rng.sample(range(len(rows)), len(rows)):
        if (new := change(rows[at])) is not None:
            return merge.model_copy(update={name: (*rows[:at], new, *rows[at + 1 :])})
    return None


def _drop_row(name: str) -> Tampering:
    def tamper(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
        rows = [*getattr(merge, name)]
        if not rows:
            return None
        rows.pop(rng.randrange(len(rows)))
        return merge.model_copy(update={name: tuple(rows)})

    return tamper


def _add_row(name: str, create: Callable[[Random, MergeCase, Merge], Any] | None = None) -> Tampering:
    """Return the tampering that adds a row: a created one, or an existing one again."""

    def tamper(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:
        rows = getattr(merge, name)
        if not create and not rows:
            return None
        return merge.model_copy(update={name: (*rows, create(rng, case, merge) if create else rng.choice(rows))})

    return tamper


def _change(name: str, change: Callable[[Random, MergeCase, Any], Any]) -> Tampering:
    def tamper(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:
        return _change_row(rng, merge, name, lambda row: change(rng, case, row))

    return tamper


def _ref(rng: Random, case: MergeCase) -> Ref:
    return Ref.of(rng.choice(case.outcomes))


def _other_disposition(rng: Random, case: MergeCase, row: LedgerRow) -> LedgerRow | None:
    """Return a row with another of the dispositions that an answer may have."""
    if row.disposition in ("failed", "skipped"):
        return None
    others = {"merged", "overridden", "duplicate_of"} - {row.disposition}
    new = rng.choice(sorted(others))
    refs = [Ref.of(each) for each in case.outcomes if each.status == "succeeded" and Ref.of(each) != Ref.of(row)]
    if new != "merged" and not refs:
        return None
    by = None if new == "merged" else row.by or rng.choice(refs)
    return row.model_copy(update={"disposition": new, "by": by})


def _other_by(rng: Random, case: MergeCase, row: LedgerRow) -> LedgerRow | None:
    """Return a row that names another outcome."""
    refs = [
        Ref.of(each)
        for each in case.outcomes
        if each.status == "succeeded" and Ref.of(each) not in (Ref.of(row), row.by)
    ]
    return row.model_copy(update={"by": rng.choice(refs)}) if row.by and refs else None


def _other_reason(rng: Random, case: MergeCase, row: LedgerRow) -> LedgerRow:  # noqa: ARG001 -- one signature
    """Return a row with another reason."""
    options = [_alter_text(rng, row.reason), "", "rule 'max' on field 'year'", "equal record"]
    return row.model_copy(update={"reason": rng.choice([each for each in options if each != row.reason])})


def _other_sources(rng: Random, case: MergeCase, row: FieldRow) -> FieldRow:
    """Return a row with other sources."""
    sources = [*row.sources]
    way = rng.randrange(3)
    if way == 0 and len(sources) > 1:
        sources.pop(rng.randrange(len(sources)))
    elif way == 1 and sources:
        sources[rng.randrange(len(sources))] = _ref(rng, case)
    else:
        sources.append(_ref(rng, case))
    return row.model_copy(update={"sources": tuple(sources)})


def _other_losers(rng: Random, case: MergeCase, row: FieldRow) -> FieldRow:
    """Return a row with other removed values."""
    losers = [*row.losers]
    way = rng.randrange(4)
    if not losers or way == 0:
        losers.append(Loser(value=_alter(rng, row.winner), sources=(_ref(rng, case),)))
    elif way == 1:
        losers.pop(rng.randrange(len(losers)))
    else:
        at = rng.randrange(len(losers))
        change = {"value": _alter(rng, losers[at].value)} if way == 2 else {"sources": (_ref(rng, case),)}
        losers[at] = losers[at].model_copy(update=change)
    return row.model_copy(update={"losers": tuple(losers)})


def _other_winner(rng: Random, case: MergeCase, row: FieldRow) -> FieldRow:  # noqa: ARG001 -- one signature
    """Return a row with another winner than the value has."""
    return row.model_copy(update={"winner": _alter(rng, row.winner)})


def _other_rule(rng: Random, case: MergeCase, row: FieldRow) -> FieldRow:  # noqa: ARG001 -- one signature
    """Return a row with another rule."""
    rules = ["priority", "majority", "longest", "max", "union", "kept", "decided", "consensus:mean", "module:name"]
    return row.model_copy(update={"rule": rng.choice([rule for rule in rules if rule != row.rule])})


def _other_path(rng: Random, case: MergeCase, row: FieldRow) -> FieldRow:  # noqa: ARG001 -- one signature
    """Return a row about another place."""
    shorter = row.path.rpartition("/")[0]
    longer = f"{row.path}/0"
    return row.model_copy(update={"path": rng.choice([shorter, longer, f"{row.path}x"])})


def _change_flag(rng: Random, case: MergeCase, flag: Flag) -> Flag:
    """Return a changed flag."""
    changes: list[dict[str, Any]] = [
        {"message": _alter_text(rng, flag.message)},
        {"kind": rng.choice([kind for kind in ("conflict", "tie", "number", "claim") if kind != flag.kind])},
        {"text": _alter_text(rng, flag.text)},
        {"path": f"{flag.path}/0"},
        {"sources": (*flag.sources, _ref(rng, case))},
        {"sources": flag.sources[:-1]},
    ]
    return flag.model_copy(update=rng.choice(changes))


def _invent_flag(rng: Random, case: MergeCase, merge: Merge) -> Flag:
    """Return an invented flag."""
    paths = [path for path, _ in iter_parts(merge.value)]
    kind = rng.choice(["conflict", "tie", "number", "doubt"])
    return Flag(path=rng.choice(paths), kind=kind, text="x", message="Invented.", sources=(_ref(rng, case),))


def _other_cells(rng: Random, case: MergeCase, table: Table) -> Table | None:  # noqa: ARG001 -- one signature
    """Return a table with a changed cell, in three ways of four, or with other rows or columns."""
    rows = [dict(row) for row in table.rows]
    if not rows:
        return None
    at, way = rng.randrange(len(rows)), rng.randrange(9)
    name = rng.choice([*rows[at]])
    cell = rows[at][name]
    if way == 0:
        rows.pop(at)
    elif way == 1:
        rows.append(dict(rows[at]))
    elif way == 2 and len(rows) > 1:
        other = rng.choice([place for place in range(len(rows)) if place != at])
        rows[at], rows[other] = rows[other], rows[at]
    elif way == 3:
        rows = [{f"{key}x" if key == name else key: each for key, each in row.items()} for row in rows]
    elif way == 4 and isinstance(cell, (int, float)) and not isinstance(cell, bool) and cell == int(cell):
        rows[at][name] = float(cell) if isinstance(cell, int) else int(cell)
    else:
        rows[at][name] = _alter(rng, cell)
    return table.model_copy(update={"rows": tuple(rows)})


def _other_words(rng: Random, case: MergeCase, table: Table) -> Table:  # noqa: ARG001 -- one signature
    """Return a table with another heading or note."""
    name = rng.choice(["title", "note"])
    return table.model_copy(update={name: _alter_text(rng, getattr(table, name))})


def _other_text(rng: Random, case: MergeCase, document: Document) -> Document:  # noqa: ARG001 -- one signature
    """Return a document with another text."""
    return document.model_copy(update={"text": _alter_text(rng, document.text)})


def _change_proposal(rng: Random, case: MergeCase, proposal: Proposal) -> Proposal:  # noqa: ARG001 -- one signature
    """Return a changed proposal."""
    changes: list[dict[str, Any]] = [
        {"score": round(proposal.score * 0.9, 4)},
        {"why": _alter_text(rng, proposal.why)},
        {"left": proposal.right, "right": proposal.left},
        {"left_sources": proposal.right_sources},
    ]
    return proposal.model_copy(update=rng.choice(changes))


def change_rules(rng: Random, case: MergeCase, merge: Merge) -> Merge:  # noqa: ARG001 -- one signature
    """Describe other rules."""
    return merge.model_copy(update={"rules": _alter_text(rng, merge.rules)})


def change_shortfalls(rng: Random, case: MergeCase, merge: Merge) -> Merge:  # noqa: ARG001 -- one signature
    """Hide a shortfall, or a failure, or invent one."""
    if merge.failed:
        return merge.model_copy(update={"failed": rng.choice(["", _alter_text(rng, merge.failed)])})
    if merge.shortfalls and rng.random() < 0.7:
        return merge.model_copy(update={"shortfalls": merge.shortfalls[1:]})
    return merge.model_copy(update={"shortfalls": (*merge.shortfalls, "Something is missing.")})


# Lies that are consistent throughout, as the merge was made of something else.


def apply_other_rules(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:
    """Merge by other rules, and call them by the names of those that were asked for."""
    other: AnyMerger
    if isinstance(case.integrator, MergeRecords):
        kept: dict[str, Any] = {name: getattr(case.integrator, name) for name in ("identity", "records", "match")}
        if case.integrator.match:
            kept["rules"] = ()  # linked identities take no rule
        other = random_records_integrator(rng).model_copy(update=kept)
    elif isinstance(case.integrator, Consensus):
        fixed = {name: getattr(case.integrator, name) for name in ("min_votes", "item", "voter")}
        other = random_consensus(rng).model_copy(update=fixed)
    else:
        return None
    lied = case.try_merge(case.outcomes, other)
    if lied is None:
        return None
    names = {row.path: row.rule for row in merge.fields}
    rows = [row.model_copy(update={"rule": names.get(row.path, row.rule)}) for row in lied.fields]
    return lied.model_copy(update={"fields": tuple(rows), "rules": merge.rules})


def change_answer(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Merge as if an agent had answered something else."""
    answered = [at for at, outcome in enumerate(case.outcomes) if outcome.status == "succeeded"]
    at = rng.choice(answered)
    value = case.outcomes[at].value
    leaves = [(path, part) for path, part in iter_parts(value) if not isinstance(part, (list, dict))]
    if leaves and rng.random() < 0.7:
        path, leaf = rng.choice(leaves)
        new = _set_at(value, path, _alter(rng, leaf))
    else:
        new = case.outcomes[rng.choice(answered)].value
    outcomes = [*case.outcomes]
    outcomes[at] = outcomes[at].model_copy(update={"value": new})
    return case.try_merge(outcomes)


def swap_answers(rng: Random, case: MergeCase, merge: Merge) -> Merge | None:  # noqa: ARG001 -- one signature
    """Merge as if two agents had given each other's answers."""
    answered = [at for at, outcome in enumerate(case.outcomes) if outcome.status == "succeeded"]
    if len(answered) < 2:
        return None
    one, two = rng.sample(answered, 2)
    outcomes = [*case.outcomes]
    for at, other in ((one, two), (two, one)):
        update = {"value": case.outcomes[other].value, "change": case.outcomes[other].change}
        outcomes[at] = case.outcomes[at].model_copy(update=update)
    return case.try_merge(outcomes)


LIES = (
    *(Lie("value", each) for each in (change_leaf, change_leaf, change_leaf, change_answer, swap_answers)),
    Lie("int against float", change_number_type),
    Lie("repeated element", repeat_element),
    Lie("dropped element", drop_element),
    Lie("added element", add_element),
    Lie("swapped elements", swap_elements),
    Lie("renamed key", rename_key),
    Lie("dropped key", drop_key),
    Lie("added key", add_key),
    Lie("text in the value", change_prose),
    *(Lie("row", each) for each in (_drop_row("fields"), _add_row("fields"), _change("fields", _other_path))),
    *(Lie("row", _change("fields", each)) for each in (_other_winner, _other_rule)),
    *(Lie("sources and losers", _change("fields", each)) for each in (_other_sources, _other_losers)),
    *(Lie("ledger", each) for each in (_drop_row("ledger"), _add_row("ledger"), _change("ledger", _other_by))),
    Lie("disposition", _change("ledger", _other_disposition)),
    Lie("reason", _change("ledger", _other_reason)),
    *(Lie("table", each) for each in (_drop_row("tables"), *[_change("tables", _other_cells)] * 3)),
    Lie("words of a table", _change("tables", _other_words)),
    *(
        Lie("flag", each)
        for each in (_drop_row("flags"), _change("flags", _change_flag), _add_row("flags", _invent_flag))
    ),
    *(Lie("document", each) for each in (_change("documents", _other_text), _drop_row("documents"))),
    *(Lie("proposal", each) for each in (_drop_row("proposals"), _change("proposals", _change_proposal))),
    Lie("rules text", change_rules),
    Lie("shortfall", change_shortfalls),
    Lie("other rules", apply_other_rules),
)
"""All ways of tampering; one kind may have several."""
LIES_PER_MERGE = 24
"""Most lies about one merge."""


@cache
def _lying_class(honest: type[Any]) -> type[Any]:
    """Return a class that derives from an integrator's, and returns the merge in its attribute `lie` every time."""

    def merge(self: Any, *_: object) -> Merge:  # noqa: ANN401 -- an integrator of any class
        return cast("Merge", vars(self)["lie"])

    name = "merge_asking" if issubclass(honest, AskingIntegrator) else "merge"
    return type(f"Lying{honest.__name__}", (honest,), {name: merge})


def find_violations(case: MergeCase, lie: Merge, *, derives: bool) -> Sequence[Violation]:
    """Return what the audit finds in a lie that is told on every merge.

    Args:
        case: The input of the merge.
        lie: The merge that was tampered with.
        derives: Whether the integrator's class derives from the built-in one; else only its second merge is a lie.
    """
    integrator = case.integrator
    if derives:
        integrator = cast("Any", integrator).model_copy()
        object.__setattr__(integrator, "__class__", _lying_class(type(case.integrator)))
        vars(integrator)["lie"] = lie
    return audit(lie, case.outcomes, case.briefs, integrator, again=lambda _: lie)


class Result(NamedTuple):
    """Result of a measurement."""

    found: Counter[tuple[str, str]]
    """Number of lies that were found, by kind and integrator."""
    told: Counter[tuple[str, str]]
    """Number of all lies."""
    honest: int
    """Number of honest merges."""
    accused: list[str]
    """Honest merges in which the audit has a violation, each with the first one."""
    missed: list[str]
    """Lies that were not found."""

    def rate(self, kind: str | None = None, name: str | None = None) -> tuple[int, int]:
        """Return how many lies were found, and how many there were; of one kind or integrator, if given."""
        keys = [key for key in self.told if kind in (None, key[0]) and name in (None, key[1])]
        return sum(self.found[key] for key in keys), sum(self.told[key] for key in keys)


def measure(cases: int, names: Sequence[str] = (*CASES,), *, honest: int = 0) -> Result:
    """Return how many lies the audit finds.

    Args:
        cases: The number of lies, divided among the integrators.
        names: The integrators.
        honest: The number of honest merges at least; there is one for every few lies anyway.
    """
    result = Result(Counter(), Counter(), 0, [], [])
    count = 0
    with TemporaryDirectory(prefix="tampering-") as folder:
        for name in names:
            quota, at, told = cases // len(names), 0, 0
            while told < quota or at * len(names) < honest:
                case = create_case(name, Random(f"{name} {at}"), Path(folder))
                merge, at, count = case.merge(), at + 1, count + 1
                if violations := _audit_honestly(case, merge):
                    result.accused.append(f"{name} {at - 1}: {violations[0]}")
                for number, kind, lie in _tell_lies(case, merge, f"{name} {at}", min(quota - told, LIES_PER_MERGE)):
                    told += 1
                    result.told[kind, name] += 1
                    is_found = bool(find_violations(case, lie, derives=number % 2 == 0))
                    result.found[kind, name] += is_found
                    if not is_found:
                        result.missed.append(f"{name} {at - 1}, {kind}: {_describe(merge, lie)}")
    return result._replace(honest=count)


def _tell_lies(case: MergeCase, merge: Merge, seed: str, most: int) -> Iterator[tuple[int, str, Merge]]:
    """Yield lies about a merge, each with its number and kind; what differs from the merge in nothing is no lie."""
    rng = Random(seed)
    truth = merge_digest(merge)
    number = 0
    for lie in rng.sample(LIES, len(LIES)):
        if number >= most:
            return
        try:
            told = lie.tamper(rng, case, merge)
            if told is None or merge_digest(told) == truth or _is_reordered(told, merge):
                continue
            told = Merge.model_validate({name: getattr(told, name) for name in Merge.model_fields})
        except ValidationError:
            continue  # it is no merge, so a run would refuse it
        number += 1
        yield number, lie.kind, told


def _is_reordered(one: Merge, other: Merge) -> bool:
    """Return whether two merges differ at most by the order of the rows of ledger and fields, which is free."""
    texts = [
        (
            *sorted(map(repr, each.ledger)),
            *sorted(map(repr, each.fields)),
            repr(each.model_copy(update={"ledger": (), "fields": ()})),
        )
        for each in (one, other)
    ]
    return texts[0] == texts[1]


def _audit_honestly(case: MergeCase, merge: Merge) -> Sequence[Violation]:
    asking = isinstance(case.integrator, AskingIntegrator)
    again = partial(run_integrator, case.integrator, case.briefs, ask=case.agent if asking else None)
    return audit(merge, case.outcomes, case.briefs, case.integrator, again=again)


def _describe(truth: Merge, lie: Merge) -> str:
    """Return where a lie differs from the truth, in a line."""
    for name in Merge.model_fields:
        one, other = repr(getattr(truth, name)), repr(getattr(lie, name))
        if one != other:
            at = next(
                (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
            )
            return f"{name}: …{one[max(at - 60, 0) : at + 60]}… → …{other[max(at - 20, 0) : at + 60]}…"
    return "nothing"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="?", type=int, default=3600)
    parser.add_argument("--integrators", nargs="+", choices=[*CASES], default=[*CASES], metavar="NAME")
    parser.add_argument("--honest", type=int, default=450, help="the number of honest merges at least")
    parser.add_argument("--missed", action="store_true", help="print every lie that is not found")
    arguments = parser.parse_args()
    start = time.perf_counter()
    result = measure(arguments.cases, arguments.integrators, honest=arguments.honest)
    groups: dict[str, list[str]] = defaultdict(list)
    for kind, name in result.told:
        groups["kind"].append(kind)
        groups["integrator"].append(name)
    for title, names in groups.items():
        print(f"{title:28} found  told   rate")
        for name in dict.fromkeys(sorted(names)):
            found, told = result.rate(name, None) if title == "kind" else result.rate(None, name)
            print(f"  {name:26} {found:5} {told:5} {found / told:6.1%}")
    found, told = result.rate()
    print(f"in all {found} of {told} lies found ({found / told:.1%}), in {time.perf_counter() - start:.0f} s")
    print(f"{len(result.accused)} of {result.honest} honest merges accused", *result.accused, sep="\n  ")
    if arguments.missed:
        print("missed:", *result.missed, sep="\n  ")
    if result.accused:
        sys.exit(1)


if __name__ == "__main__":
    main()
