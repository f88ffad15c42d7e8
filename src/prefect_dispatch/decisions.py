"""What people decided about a merge, kept in a file and used by every later run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import Field, JsonValue, ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterable


Identity = dict[str, JsonValue]
"""The identity of a record: its fields by name, such as `{"name": "MIT"}`."""
Pair = tuple[Identity, Identity]


class Choice(Strict):
    """The value that a field is to have."""

    record: Identity
    """The record."""
    field: Annotated[str, Field(min_length=1)]
    """The field's name, or the dotted path of a field inside an object."""
    value: JsonValue
    """The value; it counts only where some record says it."""


class Decisions(Strict):
    """What was decided.

    Example:
        >>> yes = Decisions(same=(({"name": "MIT"}, {"name": "MIT License"}),))
        >>> no = Decisions(different=(({"name": "MIT License"}, {"name": "MIT"}),))
        >>> yes.plus(no).same
        ()
    """

    same: tuple[Pair, ...] = ()
    """Pairs of records that are one."""
    different: tuple[Pair, ...] = ()
    """Pairs of records that are two, however alike."""
    fields: tuple[Choice, ...] = ()
    """Values that were chosen."""

    def plus(self, later: Decisions) -> Decisions:
        """Return both, the later decision in place of an earlier one on the same pair or field; in one order."""
        pairs = {_pair(pair): (pair, word) for word, pair in (*_worded(self), *_worded(later))}
        fields = {canonical([each.record, each.field]): each for each in (*self.fields, *later.fields)}
        ordered = [pairs[name] for name in sorted(pairs)]
        return Decisions(
            same=tuple(pair for pair, word in ordered if word == "same"),
            different=tuple(pair for pair, word in ordered if word == "different"),
            fields=tuple(fields[name] for name in sorted(fields)),
        )


def load_decisions(path: Path) -> Decisions:
    """Return the decisions of a file, YAML or JSON; none where there is no file yet.

    Raises:
        JobError: If it can't be read, or holds something else.
    """
    try:
        data: object = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        return Decisions.model_validate({} if data is None else data)
    except FileNotFoundError:
        return Decisions()
    except OSError as error:
        raise JobError(f"The decisions file {str(path)!r} can't be read: {error.strerror}.") from None
    except (ValidationError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        wrong = "; ".join(each["msg"] for each in error.errors()) if isinstance(error, ValidationError) else "not YAML"
        raise JobError(
            f"The decisions file {path.name!r} is no mapping of 'same', 'different' and 'fields': {wrong}."
        ) from None


def save_decisions(path: Path, decisions: Decisions) -> None:
    """Write decisions to a file, whole or not at all."""
    text = yaml.safe_dump(decisions.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)


def _worded(decisions: Decisions) -> Iterable[tuple[str, Pair]]:
    return (
        *(("same", pair) for pair in decisions.same),
        *(("different", pair) for pair in decisions.different),
    )


def _pair(pair: Pair) -> str:
    return "\n".join(sorted(map(canonical, pair)))
