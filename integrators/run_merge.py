"""Prepares an integrator, runs it, and validates that its result is a merge that can be serialized."""

from __future__ import annotations

import gc
import inspect
import json
from collections import Counter
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from prefect_dispatch.errors import CoverageError, JobError, MergeError
from prefect_dispatch.integrators.base import AskingIntegrator, BaseIntegrator, Integrator
from prefect_dispatch.models.imports import explain_misfit, import_reference
from prefect_dispatch.models.ledger import Merge, Ref
from prefect_dispatch.security.redaction import redact, safe_message
from prefect_dispatch.serialization.json_text import find_json_problem, iter_json_chunks
from prefect_dispatch.serialization.json_values import pointer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import AnyMerger, Asker
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Outcome


def integrator_problem(integrator: object) -> str | None:
    """Return why an object is no integrator, as a sentence that says what to do; None if it is one.

    Example:
        >>> from prefect_dispatch import Collate
        >>> integrator_problem(Collate())
        >>> integrator_problem(Collate)
        'Collate is a class, not an integrator: pass an object of it, such as Collate().'
    """
    if inspect.isclass(integrator):
        name = integrator.__name__
        return f"{name} is a class, not an integrator: pass an object of it, such as {name}()."
    name = type(integrator).__name__
    if isinstance(integrator, AskingIntegrator):
        why = explain_misfit(integrator.merge_asking, "briefs", "outcomes", "ask")
        return f"{name} is not an integrator: its method 'merge_asking' {why}." if why else None
    if isinstance(integrator, Integrator):
        why = explain_misfit(integrator.merge, "briefs", "outcomes")
        return f"{name} is not an integrator: its method 'merge' {why}." if why else None
    return f"{name} is not an integrator: it needs a method 'merge' (or 'merge_asking')."


def prepare_integrator(
    integrator: AnyMerger,
    briefs: Sequence[Brief],
    items: Sequence[Item],
    folder: Path,
    executor: Executor | None = None,
) -> AnyMerger:
    """Return an integrator that is prepared for a run.

    Args:
        integrator: Any integrator; one without optional abilities is returned as it is.
        briefs: The briefs of the job.
        items: The items of the job.
        folder: The folder that relative paths and the user's own code are looked up from.
        executor: The job's executor, with its paths resolved.

    Raises:
        JobError: If something is missing, the object is no integrator, or it doesn't fit the job.
    """
    if problem := integrator_problem(integrator):
        raise JobError(problem)
    # The order matters: each step may need the result of the one before.
    integrator = _prepare(integrator, "resolve_references", partial(import_reference, root=folder))
    if executor is not None:
        integrator = _prepare(integrator, "with_executor", executor, folder)
    integrator = _prepare(integrator, "resolve_paths", folder)
    if items:  # without items, nothing is merged
        integrator = bind_items(integrator, briefs, items)
    BaseIntegrator.of(integrator).preflight(briefs)
    return integrator


def bind_items(integrator: AnyMerger, briefs: Sequence[Brief], items: Sequence[Item]) -> AnyMerger:
    """Return an integrator with the items that it needs.

    Raises:
        JobError: If it doesn't fit the items, or its method returns no integrator.
    """
    return _prepare(integrator, "with_items", briefs, items)


def _prepare(integrator: AnyMerger, method: str, *arguments: object) -> AnyMerger:
    """Return the prepared copy of an integrator that one of its methods returns; by default the integrator itself."""
    base = BaseIntegrator.of(integrator)
    prepared = getattr(base, method)(*arguments)
    if prepared is base:
        return integrator
    if problem := integrator_problem(prepared):
        raise JobError(
            f"The method {method!r} of {type(integrator).__name__} must return an integrator (such as self), but it "
            f"didn't: {problem}"
        )
    return cast("AnyMerger", prepared)


REUSE_NOTE = "The agents' answers are stored; another run of the job uses them again."
"""Appended to every message about a failed merge."""


def run_integrator(
    integrator: AnyMerger, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker | None = None
) -> Merge:
    """Return an integrator's merge of the outcomes.

    Args:
        integrator: The integrator.
        briefs: The briefs of the job.
        outcomes: All outcomes.
        ask: Runs queries for an `AskingIntegrator`. None: the method `merge` is called.

    Raises:
        MergeError: If the integrator raises, or doesn't return a merge.
    """
    name = type(integrator).__name__
    try:
        merge = _call_merge(integrator, briefs, outcomes, ask)
    except (Exception, SystemExit) as error:  # a sys.exit() in it would end the run without a message
        raise MergeError(f"The integrator {name} raised {_describe_error(error)}. {REUSE_NOTE}") from error
    if not isinstance(merge, Merge):
        raise MergeError(
            f"The integrator {name} returned {'nothing' if merge is None else f'a {type(merge).__name__}'}; it must "
            f"return a Merge(value=…, ledger=…). {REUSE_NOTE}"
        )
    return merge


def _call_merge(
    integrator: AnyMerger, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker | None
) -> object:  # a merge by its signature, but user code may return any object
    """Call `merge` or `merge_asking` and return its unchecked result."""
    if ask is None:
        return cast("Integrator", integrator).merge(list(briefs), outcomes)
    return cast("AskingIntegrator", integrator).merge_asking(list(briefs), outcomes, ask)


def require_serializable(merge: Merge, integrator: object) -> None:
    """Check that a merge can be serialized as JSON.

    Raises:
        MergeError: If it has a value that JSON can't represent; the message has the path of that value.
    """
    if _is_serializable(merge):
        return
    for name, value in merge.model_dump(warnings=False).items():
        for path, part in _iter_leaves(value):
            if problem := _json_problem(part):
                raise MergeError(
                    f"The integrator {type(integrator).__name__} returned a merge whose {name!r} {problem}, at "
                    f"{path or '/'}; give null or text there. {REUSE_NOTE}"
                )


def merge_digest(merge: Merge) -> bytes | None:
    """Return the SHA-256 digest of a merge, or None if it can't be serialized."""
    digest = sha256()
    try:
        for chunk in iter_json_chunks(merge):
            digest.update(chunk)
    except PydanticSerializationError:
        return None
    return digest.digest()


def _is_serializable(merge: Merge) -> bool:
    """Return whether a merge can be serialized, without what pydantic would write as something else."""
    # A value that was replaced after its validation: pydantic would write a set as a list.
    parts = merge.value.values() if isinstance(merge.value, dict) else [merge.value]
    try:
        for part in chain.from_iterable(part if isinstance(part, list) else [part] for part in parts):
            json.dumps(part)
    except (TypeError, ValueError):
        return False
    # Values of nested models are serialized once more by themselves: a model writes NaN and Infinity as null.
    rows = [(row.winner, [loser.value for loser in row.losers]) for row in merge.fields]
    pairs = [(each.left, each.right) for each in merge.proposals]
    cells = [table.rows for table in merge.tables]
    try:
        return not any(
            b"NaN" in chunk or b"Infinity" in chunk
            for part in (merge, rows, pairs, cells)
            for chunk in iter_json_chunks(part, odd="constants")
        )
    except PydanticSerializationError:
        return False


def _iter_leaves(value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    """Yield the leaves of a value and the names in its objects, each with its path."""
    stack: list[tuple[str, JsonValue]] = [("", value)]
    while stack:
        path, part = stack.pop()
        if isinstance(part, dict):
            stack += [(path, name) for name in part]
            stack += [(path + pointer(name), inside) for name, inside in part.items()]
        elif isinstance(part, (list, tuple)):
            stack += [(path + pointer(at), inside) for at, inside in enumerate(part)]
        else:
            yield path, part


def _json_problem(part: object) -> str | None:
    """Return why a value isn't valid JSON, or None; other types were inserted after the merge was validated."""
    if part is None or isinstance(part, (str, int, float)):
        return find_json_problem(part)
    return f"holds an object of type {type(part).__name__}"


def _describe_error(error: BaseException) -> str:
    """Return an exception as a sentence; of a pydantic error only the first problem."""
    if not isinstance(error, ValidationError):
        return safe_message(error).rstrip(".")
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, (error.title, *first["loc"][:5])))
    return redact(f"ValidationError: {place}: {first['msg']}")


def reconcile(work: Iterable[Ref], outcomes: Sequence[Outcome]) -> None:
    """Check that there is exactly one outcome for each piece of work.

    Args:
        work: Every (brief, item) of the job; duplicates are ignored.
        outcomes: The outcomes, in any order.

    Raises:
        CoverageError: If an outcome is missing, repeated or unknown.

    Example:
        >>> reconcile([Ref(brief="terms", item="mit.txt")], [])
        Traceback (most recent call last):
        ...
        prefect_dispatch.errors.CoverageError: Outcomes and work don't match; missing: terms/mit.txt.
    """
    expected = set(work)
    counts = Counter(map(Ref.of, outcomes))
    missing, unknown = expected - counts.keys(), counts.keys() - expected
    repeated = [ref for ref, count in counts.items() if count > 1]
    if missing or unknown or repeated:
        raise CoverageError(*(sorted(refs, key=lambda ref: ref.order) for refs in (missing, repeated, unknown)))


@contextmanager
def gc_paused() -> Generator[None]:
    """Pause the garbage collector's search for cycles: a merge creates none, and is a third faster without it.

    Objects that are in no cycle are freed as always. If several threads pause at once, the first one to finish ends
    the pause.

    Example:
        >>> import gc
        >>> with gc_paused():
        ...     gc.isenabled()
        False
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
