"""What the integrators that give data promise of it: the form that was asked for, and every gap told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.gaps import gaps
from prefect_dispatch.integrators.records.fitting import FORM, faults, schemas_of
from prefect_dispatch.integrators.values import get, pointer
from prefect_dispatch.ledger import Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_dispatch.integrators.records.fitting import Misfit
    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Brief, Outcome


def untold(merge: Merge, outcomes: Sequence[Outcome]) -> Iterator[Violation]:
    """Yield that a value's field `gaps` isn't the outcomes without an answer."""
    if get(merge.value, ["gaps"]) != gaps(outcomes):
        message = "the value's gaps are not the outcomes without an answer."
        yield Violation(law="conservation", where="/gaps", message=message)


def unlike(merge: Merge, briefs: Sequence[Brief], *, at: str) -> Iterator[Violation]:
    """Yield each part of an entry's value that the schema of its brief refuses; `at` is where the entries stand."""
    schemas = schemas_of(briefs)
    found = get(merge.value, [at])
    for number, entry in enumerate(found if isinstance(found, list) else []):
        if isinstance(entry, dict) and (schema := schemas.get(str(entry.get("brief")))):
            for fault in faults(schema, entry.get("value")):
                where = pointer(at, number, "value", *fault.path)
                yield Violation(law="schema", where=where, message=fault.message)


def unflagged(merge: Merge, misfits: Iterable[Misfit]) -> Iterator[Violation]:
    """Yield each part of merged records that a schema refuses, and of which no flag says so."""
    flagged = {(flag.path, flag.message) for flag in merge.flags if flag.kind == FORM}
    for each in misfits:
        if (each.flag.path, each.flag.message) not in flagged:
            yield Violation(law="schema", where=each.flag.path, message=each.message)
