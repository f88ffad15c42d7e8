"""Every error, whole after a trip through another process."""

from __future__ import annotations

import pickle
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import errors
from prefect_dispatch.errors import (
    AuditError,
    BriefError,
    BrokenCheckError,
    BudgetError,
    BusyError,
    CoverageError,
    DependenceError,
    DispatchError,
    DispatchFailed,
    ExecutorError,
    FormRefusedError,
    InvalidOutput,
    MergeError,
    PatienceError,
    RejectedError,
    ServerError,
    SourceError,
    TerminalError,
    TransientError,
    UnaskedError,
)
from prefect_dispatch.models.ledger import Merge, Ref, Violation
from prefect_dispatch.models.outcome import Attempt, Outcome, Usage
from prefect_dispatch.models.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

_cloudpickle: Any = import_module("cloudpickle")  # as Prefect uses it; it has no types
A, B = Ref(brief="a", item="1"), Ref(brief="a", item="2")
VIOLATION = Violation(law="recall", where="a/1", message="'x' is lost.")
REPORT = Report(status="failed", message="m", outcomes=(Outcome(brief="a", item="1", status="skipped"),))


def _with_attempts() -> ExecutorError:
    error = TransientError("busy", kind="timeout", usage=Usage(requests=1))
    error.attempts = (Attempt(usage=Usage(requests=2), error="timeout: busy"),)
    return error


CASES = [
    pytest.param(ServerError("no server"), "no server", id="ServerError"),
    pytest.param(BriefError("wrong"), "wrong", id="BriefError"),
    pytest.param(SourceError("none"), "none", id="SourceError"),
    pytest.param(
        DependenceError(["A ties B.", "C ties D."]),
        "The work is not independent: A ties B. C ties D.",
        id="DependenceError",
    ),
    pytest.param(ExecutorError("odd", kind="odd"), "odd", id="ExecutorError"),
    pytest.param(_with_attempts(), "busy", id="TransientError"),
    pytest.param(BusyError("later", retry_after_s=2.5), "later", id="BusyError"),
    pytest.param(FormRefusedError("no schema"), "no schema", id="FormRefusedError"),
    pytest.param(UnaskedError("not now"), "not now", id="UnaskedError"),
    pytest.param(BudgetError("spent"), "spent", id="BudgetError"),
    pytest.param(PatienceError("later"), "later", id="PatienceError"),
    pytest.param(InvalidOutput("no", problems=["p"], kind="empty", usage=Usage(requests=3)), "no", id="InvalidOutput"),
    pytest.param(RejectedError("too long"), "too long", id="RejectedError"),
    pytest.param(TerminalError("wrong key"), "wrong key", id="TerminalError"),
    pytest.param(BrokenCheckError("it raised"), "it raised", id="BrokenCheckError"),
    pytest.param(
        CoverageError([A], [], [A, B]),
        "Outcomes and work don't match; missing: a/1; unknown: a/1, a/2.",
        id="CoverageError",
    ),
    pytest.param(MergeError("The integrator raised."), "The integrator raised.", id="MergeError"),
    pytest.param(
        AuditError([VIOLATION], Merge(value=1, ledger=())),
        "The merged value failed its audit: recall at a/1: 'x' is lost.",
        id="AuditError",
    ),
    pytest.param(DispatchFailed("All failed.", REPORT), "All failed.", id="DispatchFailed"),
]


@pytest.mark.parametrize("dumps", [pickle.dumps, _cloudpickle.dumps], ids=["pickle", "cloudpickle"])
@pytest.mark.parametrize(("error", "message"), CASES)
def test_errors_survive_a_trip(error: DispatchError, message: str, dumps: Callable[[Any], bytes]) -> None:
    """An error arrives from a worker with its message and all that it carries."""
    back = pickle.loads(dumps(error))  # noqa: S301 -- our own bytes
    assert type(back) is type(error)
    assert (str(back), repr(back)) == (str(error), repr(error))
    assert str(error) == message
    assert vars(back) == vars(error)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ExecutorError, "error"),
        (TransientError, "transient"),
        (BusyError, "rate_limit"),
        (FormRefusedError, "form_refused"),
        (UnaskedError, "unasked"),
        (BudgetError, "budget"),
        (PatienceError, "rate_limit"),
        (InvalidOutput, "invalid_output"),
        (RejectedError, "rejected"),
        (TerminalError, "terminal"),
        (BrokenCheckError, "terminal"),
    ],
)
def test_the_class_of_failure(error: type[ExecutorError], kind: str) -> None:
    """Each executor error has a class of failure of its own, unless a finer one is given."""
    assert (error("m").kind, error("m", kind="finer").kind) == (kind, "finer")


def test_every_error_is_drawn_in_the_tree_and_tested() -> None:
    """The tree at the top of the module names every error; each that can be raised is in the table above."""
    found = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, DispatchError)}
    assert all(each.__name__ in str(errors.__doc__) for each in found)
    tested = {type(case.values[0]).__name__ for case in CASES}
    assert {each.__name__ for each in found} - tested == {"DispatchError", "JobError"}
