"""Briefs that name code of the user's, bound to that code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from prefect_dispatch.checks import Check, Function
from prefect_dispatch.errors import BriefError
from prefect_dispatch.models import Brief
from prefect_dispatch.references import REFERENCE, resolve
from prefect_dispatch.test_run import TestRun

if TYPE_CHECKING:
    from pathlib import Path

OURS = {"prefect_dispatch.test_run:TestRun": TestRun}
"""What is of this package and can be named, too: the answer of a command that writes a report."""


def bind(brief: Brief, root: Path) -> Brief:
    """Return a brief whose `module:name` texts are replaced by what they stand for.

    Args:
        brief: The brief; one without such texts is returned as it is.
        root: The folder that holds the user's code.

    Raises:
        BriefError: If a name can't be found there, or stands for the wrong kind of thing.
    """
    if not brief.references:
        return brief
    output = brief.output
    if isinstance(output, str) and REFERENCE.fullmatch(output):
        output = OURS.get(output) or resolve(output, root)
    try:
        checks = tuple(_bound(check, root) for check in brief.checks)
        return Brief.model_validate({**dict(brief), "output": output, "checks": checks})
    except ValidationError as error:
        raise BriefError(f"Brief {brief.name!r}: {error.errors(include_url=False)[0]['msg']}.") from None


def _bound(check: Check, root: Path) -> Check:
    if isinstance(check, Function) and isinstance(check.function, str):
        return Function(function=resolve(check.function, root))
    return check
