"""The whole of a merge: changes lined up, merged, tried, and told."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prefect_dispatch.integrators.branches.accounting import (
    failure,
    field_rows,
    flags,
    ledger_rows,
    shortfalls,
    value_of,
)
from prefect_dispatch.integrators.branches.course import Course
from prefect_dispatch.integrators.branches.folding import stepped
from prefect_dispatch.integrators.branches.history import Describer, write_history
from prefect_dispatch.integrators.branches.lining import lined_up
from prefect_dispatch.integrators.branches.overlaps import overlaps
from prefect_dispatch.integrators.branches.patches import merged_patch
from prefect_dispatch.integrators.branches.reviewing import review
from prefect_dispatch.integrators.branches.tables import acceptance_table, branches_table, conflicts_table
from prefect_dispatch.integrators.branches.trying import each_tried, end_tried
from prefect_dispatch.ledger import Merge, Ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.integrators.branches.folding import Resolver, Rule
    from prefect_dispatch.integrators.branches.ground import Ground
    from prefect_dispatch.integrators.branches.trying import Trials
    from prefect_dispatch.models import Brief, Outcome


def merged(
    ground: Ground,
    outcomes: Sequence[Outcome],
    briefs: Sequence[Brief],
    rule: Rule,
    trials: Trials,
    resolve: Resolver,
    *,
    each: bool,
    rules: str,
) -> Merge:
    """Return what comes of the changes of outcomes.

    Args:
        ground: The repository and the base.
        outcomes: All outcomes, in any order.
        briefs: What was asked, for the messages of the commits.
        rule: What decides conflicts.
        trials: Tries what is merged.
        resolve: Asked where the rule is `agent`.
        each: Whether it is tried after each change; else at the end.
        rules: All this in words.
    """
    ordered = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
    lined = lined_up(ground.git, ordered)
    fold = partial(stepped, ground, rule=rule, resolve=resolve)
    steps = (each_tried if each else end_tried)(ground, lined.branches, fold, trials)
    history = write_history(ground, lined.branches, steps, Describer(ordered, briefs))
    course = Course(ground, ordered, lined, steps, trials.verdicts, rule, history)
    value, met = value_of(course), overlaps(ground, lined.branches)
    return Merge(
        value=value,
        ledger=tuple(ledger_rows(course)),
        fields=tuple(field_rows(course, value)),
        rules=rules,
        flags=tuple(flags(course)),
        tables=(branches_table(course), met, conflicts_table(course), acceptance_table(course)),
        documents=(merged_patch(ground, course.end.tree), review(course, met, rules)),
        failed=failure(course),
        shortfalls=tuple(shortfalls(course)),
    )
