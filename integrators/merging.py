"""One way to merge, whether an integrator asks or not; and what it returns, held to being a merge at all."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from prefect_dispatch.errors import MergeError
from prefect_dispatch.fingerprint import flaw
from prefect_dispatch.integrators.values import pointer
from prefect_dispatch.ledger import Merge
from prefect_dispatch.pieces import pieces
from prefect_dispatch.scrub import scrub, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.base import AnyMerger, Asker, AskingIntegrator, Integrator
    from prefect_dispatch.models import Brief, Outcome

STORED = "What agents answered is stored: run the job again, and it is not asked again."


def merge_by(
    integrator: AnyMerger, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker | None = None
) -> Merge:
    """Return what an integrator merges of outcomes; with nobody to ask, by its `merge`.

    Raises:
        MergeError: If it raises, or returns something else than a merge.
    """
    name = type(integrator).__name__
    try:
        made = _made(integrator, briefs, outcomes, ask)
    except (Exception, SystemExit) as error:  # it may call sys.exit(), and the run would end without a word
        raise MergeError(f"The integrator {name} raised {_told(error)}. {STORED}") from error
    if not isinstance(made, Merge):
        raise MergeError(
            f"The integrator {name} returned {'nothing' if made is None else f'a {type(made).__name__}'}; it must "
            f"return a Merge(value=…, ledger=…). {STORED}"
        )
    return made


def _made(
    integrator: AnyMerger, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker | None
) -> object:  # by its signature a merge, and in truth whatever somebody's code returns
    if ask is None:
        return cast("Integrator", integrator).merge(list(briefs), outcomes)
    return cast("AskingIntegrator", integrator).merge_asking(list(briefs), outcomes, ask)


def require_writable(merge: Merge, integrator: object) -> None:
    """Check that a merge can be published as it is.

    Raises:
        MergeError: If it holds what JSON has not; it names the place.
    """
    if _is_writable(merge):
        return
    for name, value in merge.model_dump(warnings=False).items():
        for path, part in _leaves(value):
            if found := _flaw(part):
                raise MergeError(
                    f"The integrator {type(integrator).__name__} returned a merge whose {name!r} {found}, at "
                    f"{path or '/'}; give null or text there. {STORED}"
                )


def seal(merge: Merge) -> bytes | None:
    """Return what tells a merge from any other, or None if it can't be written."""
    found = sha256()
    try:
        for piece in pieces(merge):
            found.update(piece)
    except PydanticSerializationError:
        return None
    return found.digest()


def _is_writable(merge: Merge) -> bool:
    """Return whether all of a merge can be written, without numbers that a model would write as null."""
    rows = [(row.winner, [loser.value for loser in row.losers]) for row in merge.fields]
    pairs = [(each.left, each.right) for each in merge.proposals]
    cells = [table.rows for table in merge.tables]
    try:
        return not any(
            b"NaN" in piece or b"Infinity" in piece
            for part in (merge, rows, pairs, cells)
            for piece in pieces(part, odd="constants")
        )
    except PydanticSerializationError:
        return False


def _leaves(value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    """Yield the parts of a value that have no parts, the names in it among them, each with its place."""
    todo: list[tuple[str, JsonValue]] = [("", value)]
    while todo:
        path, part = todo.pop()
        if isinstance(part, dict):
            todo += [(path, name) for name in part]
            todo += [(path + pointer(name), inside) for name, inside in part.items()]
        elif isinstance(part, (list, tuple)):
            todo += [(path + pointer(at), inside) for at, inside in enumerate(part)]
        else:
            yield path, part


def _flaw(part: object) -> str | None:
    """Return why a part can't be kept; what no JSON value may hold was put there after the merge was made."""
    if part is None or isinstance(part, (str, int, float)):
        return flaw(part)
    return f"holds an object of type {type(part).__name__}"


def _told(error: BaseException) -> str:
    """Return somebody's error in a sentence; of what pydantic finds wrong with a model, the first."""
    if not isinstance(error, ValidationError):
        return told(error).rstrip(".")
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, (error.title, *first["loc"][:5])))
    return scrub(f"ValidationError: {place}: {first['msg']}")
