"""A merged value, taken in again as if it had been answered."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.integrators.gaps import restated_gaps
from prefect_dispatch.integrators.records.identities import KEY_FIELD
from prefect_dispatch.integrators.records.wording import LINKS
from prefect_dispatch.integrators.values import exact, pointer
from prefect_dispatch.models import Outcome

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.identities import Identities
    from prefect_dispatch.ledger import Merge


def restate(merge: Merge, identities: Identities, *, entries: str) -> list[Outcome]:
    """Return the records of a merged value as answers, its gaps, and the spellings that were linked.

    A record has one identity, and may have been made of several: those that were linked are said
    once more, at a lower priority, so that what they keep apart or bring together stays so.

    Args:
        merge: What was merged.
        identities: How records are told from one another.
        entries: Where, in the merged value, they stand.
    """
    value: Any = merge.value
    kept = {row.path for row in merge.fields if row.rule == "kept"}
    alone = [record for at, record in enumerate(value[entries]) if pointer(entries, at) in kept]
    named = [record for at, record in enumerate(value[entries]) if pointer(entries, at) not in kept]
    rows = [row for table in merge.tables if table.name == LINKS for row in table.rows]
    spelt = [identities.record(cast("Any", row[side])) for row in rows for side in ("left", "right")]
    return [
        *_answers("merged", named, identities),
        *([Outcome(brief="kept", item="*", status="succeeded", value=alone)] if alone else ()),
        *_answers("spelt", spelt, identities, brief_priority=-1),
        *restated_gaps(value),
    ]


def _answers(brief: str, records: list[JsonValue], identities: Identities, brief_priority: int = 0) -> list[Outcome]:
    """Return records as answers: those that are about an item each as an answer about it."""
    answers: dict[str, list[JsonValue]] = defaultdict(list)
    distinct = {json: record for record in records for json in [exact(record)]}
    for record in distinct.values():
        item = cast("Any", record)[KEY_FIELD] if identities.by_item else "*"
        answers[item].append(record)
    return [
        Outcome(brief=brief, item=item, status="succeeded", value=said, brief_priority=brief_priority)
        for item, said in answers.items()
    ]
