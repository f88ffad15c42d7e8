"""Task that merges outcomes with an integrator, and audits the merge."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 -- Prefect reads the signature
from functools import partial
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_dispatch.errors import AuditError, DispatchError, JobError, MergeError, TerminalError
from prefect_dispatch.executors.base import BaseExecutor, Executor, fingerprint
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.integrators.audit.brief_conformance import check_requirements
from prefect_dispatch.integrators.audit.laws import audit
from prefect_dispatch.integrators.base import AnyMerger, AskingIntegrator, copy_mutable_value
from prefect_dispatch.integrators.run_merge import (
    bind_items,
    integrator_problem,
    reconcile,
    require_serializable,
    run_integrator,
)
from prefect_dispatch.models.brief import Brief  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.models.item import Item  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.models.ledger import LedgerRow, Merge, Ref, make_ref, sort_key
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Outcome  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.security.redaction import log_error, redact_quotes
from prefect_dispatch.sources.inline import with_values
from prefect_dispatch.tasks.fan_out import FanOut
from prefect_dispatch.tasks.preflight import Independence
from prefect_dispatch.tasks.shards.remote import find_remote_target
from prefect_dispatch.tasks.work_item import WorkItem

if TYPE_CHECKING:
    from prefect_dispatch.integrators.base import Question
    from prefect_dispatch.reporting.progress import Progress


class QueryRunner:
    """Query runner of an integrator: sends its questions to executors, and keeps every outcome.

    Attributes:
        outcomes: The outcomes of all questions so far; a question that was asked twice is here once.
        is_replay: Whether nothing new may be asked, as the merge is repeated for its audit.
    """

    def __init__(
        self, executor: Executor, limits: Limits, *, refresh: bool = False, known: Sequence[Outcome] = ()
    ) -> None:
        """Create a query runner.

        Args:
            executor: The default executor.
            limits: The limits of the queries.
            refresh: Whether stored answers are ignored.
            known: Outcomes of earlier queries, which are not repeated.
        """
        self._executor = BaseExecutor.of(executor).without_cascade
        self._limits = limits
        self._refresh = refresh
        self.is_replay = False
        self._outcomes = {(outcome.fingerprint, Ref.of(outcome)): outcome for outcome in known}

    @property
    def executor(self) -> Executor:
        """Default executor for queries."""
        return self._executor

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The outcomes of all questions so far."""
        return tuple(self._outcomes.values())

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Return one outcome for each question, in their order; a question is asked only once.

        Raises:
            TerminalError: If every question would fail in the same way.
            DispatchError: If one was never asked in a replay: the integrator asks something else each time.
        """
        chosen = executor or self._executor
        work = [WorkItem(each.brief, each.item, fingerprint(each.brief, each.item, chosen)) for each in questions]
        new = {_query_key(each): each for each in work if _query_key(each) not in self._outcomes}
        if new and self.is_replay:
            raise DispatchError(f"Merging once more asked something new: {', '.join(str(ref) for _, ref in new)}.")
        if new:
            again = {work for work, _ in new} if self._refresh else ()
            fan_out = FanOut(
                list(new.values()),
                chosen,
                self._limits,
                independence=Independence(),
                again=again,
                on_progress=_ignore_progress,
                create_in_flight=find_remote_target(),
            )
            for outcome in fan_out.run():
                self._outcomes[outcome.fingerprint, Ref.of(outcome)] = outcome
            if fan_out.stop_reason:
                raise TerminalError(fan_out.stop_reason)
        return [self._outcomes[_query_key(each)] for each in work]


def _query_key(work: WorkItem) -> tuple[str, Ref]:
    return work.fingerprint, work.ref


def _ignore_progress(progress: Progress) -> None:
    """Ignore progress: that of a run counts items, not queries."""


@task(name="integrate", cache_policy=NO_CACHE)
def integrate(
    briefs: Sequence[Brief],
    items: Sequence[Item],
    outcomes: Sequence[Outcome],
    integrator: AnyMerger,
    executor: Executor | None = None,
    limits: Limits | None = None,
    *,
    refresh: bool = False,
    known: Sequence[Outcome] = (),
) -> Merge:
    """Return the audited merge of the outcomes, in canonical order.

    Args:
        briefs: Every brief of the job.
        items: Every item of the job.
        outcomes: One for each (brief, item), failed and skipped ones included.
        integrator: Merges the outcomes.
        executor: Default executor of the integrator's queries. None: the model of the settings.
        limits: The limits of the integrator's queries.
        refresh: Whether its queries are asked even where an answer is stored.
        known: Outcomes of its queries in an earlier merge of this run; those are not asked again.

    Raises:
        JobError: If the integrator is not one.
        CoverageError: If there isn't exactly one outcome for each (brief, item).
        AuditError: If the merged value contradicts the outcomes.
        MergeError: If the integrator raised or returned no merge, or its queries can't be asked at all.
    """
    # 1. Check the input.
    if problem := integrator_problem(integrator):
        raise JobError(problem)
    reconcile([make_ref(brief.name, item.key) for item in items for brief in briefs], outcomes)
    integrator = bind_items(integrator, briefs, with_values(items))
    # 2. Merge.
    asking = isinstance(integrator, AskingIntegrator)
    queries = (
        QueryRunner(executor or default_executor(), limits or Limits(), refresh=refresh, known=known)
        if asking
        else None
    )
    # Copies: an integrator may modify its input, and the audit compares with the original outcomes.
    copies = [copy_mutable_value(outcome) for outcome in outcomes]
    try:
        merge = run_integrator(integrator, briefs, sorted(copies, key=_sort_key), queries)
        require_serializable(merge, integrator)
    except MergeError as error:
        message = redact_quotes(str(error), [item.value for item in items])
        log_error(error.__cause__ or error)
        raise MergeError(message, queries.outcomes if queries else ()) from None
    del copies  # the audit has copies of its own
    # 3. Audit the merge; to recompute it, queries are replayed.
    if queries:
        queries.is_replay = True
    merge = merge.model_copy(update={"asked": queries.outcomes if queries else ()})
    again = partial(run_integrator, integrator, briefs, ask=queries) if queries else None
    violations = audit(merge, outcomes, briefs, integrator, again=again)
    merge = merge.model_copy(update={"ledger": tuple(sorted(merge.ledger, key=_sort_key))})
    if violations:
        raise AuditError(violations, merge)
    # 4. Compare the merged value with the briefs; a judge's queries are the integrator's own, too.
    if queries:
        queries.is_replay = False
    requirements = check_requirements(merge, outcomes, briefs, integrator, items=with_values(items), ask=queries)
    asked = queries.outcomes if queries else ()
    return merge.model_copy(update={"requirements": requirements, "asked": asked})


def _sort_key(row: LedgerRow | Outcome) -> tuple[object, ...]:
    return sort_key(row.brief, row.item)
