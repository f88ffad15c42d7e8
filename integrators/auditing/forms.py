"""Whether what was merged still has the form that the briefs ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_records import MergeRecords
from prefect_dispatch.integrators.records.fitting import FORM, faults, misfits, schemas_of
from prefect_dispatch.integrators.values import get, pointer
from prefect_dispatch.ledger import Ref, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Brief, Outcome


def misshapen(
    merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief], integrator: object
) -> Iterator[Violation]:
    """Yield each part of a merged value that its brief's schema refuses, and of which no flag says so.

    Collated answers are held to the schema of their brief; merged records to the one of a record (`misfits`).
    """
    if isinstance(integrator, Collate):
        yield from _collated(merge, briefs, integrator)
    if isinstance(integrator, MergeRecords):
        flagged = {(flag.path, flag.message) for flag in merge.flags if flag.kind == FORM}
        scopes = integrator.scopes(sorted(outcomes, key=lambda outcome: Ref.of(outcome).order))
        for each in misfits(merge, outcomes, briefs, scopes, integrator.book, at=integrator.entries):
            if (each.flag.path, each.flag.message) not in flagged:
                yield Violation(law="schema", where=each.flag.path, message=each.message)


def _collated(merge: Merge, briefs: Sequence[Brief], integrator: Collate) -> Iterator[Violation]:
    schemas = schemas_of(briefs)
    found = get(merge.value, [integrator.entries])
    for at, entry in enumerate(found if isinstance(found, list) else []):
        if isinstance(entry, dict) and (schema := schemas.get(str(entry.get("brief")))):
            for fault in faults(schema, entry.get("value")):
                where = pointer(integrator.entries, at, "value", *fault.path)
                yield Violation(law="schema", where=where, message=fault.message)
