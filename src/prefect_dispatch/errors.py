"""Error hierarchy of the package, and the effect of each error on a run.

DispatchError
├── JobError               the job is unusable; nothing was spent
│   ├── BriefError         a brief is wrong
│   ├── SourceError        the items can't be read, or none are there
│   └── DependenceError    the work isn't independent: .findings
├── ExecutorError          one ask failed: .kind .usage
│   ├── TransientError     worth a retry (5xx, cut connection, time-out)
│   │   └── BusyError      the provider asks to wait (429, overloaded): .retry_after_s
│   ├── FormRefusedError  the server rejects the way a schema is requested; the call is retried in another way
│   ├── InvalidOutput      no valid answer after the re-asks: .problems
│   ├── RejectedError      this item is rejected, others may pass (400, content policy, too long)
│   ├── UnaskedError       the call was not sent, and an immediate retry is pointless
│   │   ├── BudgetError    the budget doesn't hold it
│   │   └── PatienceError  the provider takes no more for longer than the call may wait
│   └── TerminalError      every item would fail alike (401, unknown model): the fan-out stops
│       └── BrokenCheckError  a check or a validator of the user's own raised
├── CoverageError          not one outcome for each (brief, item): .missing .repeated .unknown
├── MergeError             the integrator raised: .asked
├── AuditError             the merged value contradicts the outcomes: .violations .merge
├── ServerError            the temporary Prefect server of this process can't be started
└── DispatchFailed         the run ended as failed: .report
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import ValidationError
    from typing_extensions import Self

    from prefect_dispatch.models.ledger import Merge, Ref, Violation
    from prefect_dispatch.models.outcome import Attempt, Outcome, Usage
    from prefect_dispatch.models.report import Report


class DispatchError(Exception):
    """Base class of all errors of this package."""

    def __str__(self) -> str:
        """Return the message: further arguments are attributes."""
        return str(self.args[0]) if self.args else ""

    def __repr__(self) -> str:
        """Return the class and the message; further attributes of an error don't belong into a log."""
        return f"{type(self).__name__}({str(self)!r})"


class ServerError(DispatchError):
    """The temporary Prefect server of this process can't be started."""


class JobError(DispatchError):
    """The job is unusable as it stands; nothing was spent."""


class BriefError(JobError):
    """A brief is wrong; no retry can fix it."""


class SourceError(JobError):
    """The items can't be read, or there are none."""


class DependenceError(JobError):
    """Two pieces of work are not independent of each other.

    Attributes:
        findings: One sentence for each pair, with the fix.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        """Store the findings."""
        super().__init__(findings)
        self.findings = tuple(findings)

    def __str__(self) -> str:
        """Return the findings as one text."""
        return "The work is not independent: " + " ".join(self.findings)


class ExecutorError(DispatchError):
    """One ask failed.

    Attributes:
        kind: The class of failure in outcomes and reports.
        usage: The usage of the failed ask.
        attempts: Every attempt at this piece of work so far, this one included.
        trace: The end of the message, such as the name of a log, that differs between runs: it is recorded with the
            attempt only.
    """

    default_kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, kind: str | None = None, usage: Usage | None = None) -> None:
        """Store the message, the class of failure and the usage."""
        super().__init__(message.encode("utf-8", "replace").decode())
        self.kind = kind or self.default_kind
        self.usage = usage
        self.attempts: tuple[Attempt, ...] = ()
        self.trace = ""

    def add_trace(self, trace: str) -> Self:
        """Append a reference to further details to the message; return this error."""
        self.args = (f"{self} {trace}",)
        self.trace = f"{self.trace} {trace}"
        return self


class TransientError(ExecutorError):
    """Worth a retry: a 5xx, a cut connection, a time-out."""

    default_kind = "transient"


class BusyError(TransientError):
    """The provider is rate-limited or overloaded; waiting for it does not count as an attempt.

    Attributes:
        retry_after_s: Seconds until the retry that the provider requested, if it did.
    """

    default_kind = "rate_limit"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        kind: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Store the wait, and the attributes of every executor error."""
        super().__init__(message, kind=kind, usage=usage)
        self.retry_after_s = retry_after_s


class InvalidOutput(ExecutorError):  # noqa: N818 -- the design's word
    """There was no valid answer, even after the re-asks.

    Attributes:
        problems: The validation errors of the last answer.
    """

    default_kind = "invalid_output"

    def __init__(
        self, message: str, *, problems: Sequence[str] = (), kind: str | None = None, usage: Usage | None = None
    ) -> None:
        """Store the problems, and the attributes of every executor error."""
        super().__init__(message, kind=kind, usage=usage)
        self.problems = tuple(problems)


class RejectedError(ExecutorError):
    """This item was rejected by the agent or its provider; others may pass."""

    default_kind = "rejected"


class FormRefusedError(ExecutorError):
    """The server rejects the way an output schema is requested; the call is retried in another way."""

    default_kind = "form_refused"


class UnaskedError(ExecutorError):
    """The call was not sent, and an immediate retry is pointless."""

    default_kind = "unasked"


class BudgetError(UnaskedError):
    """The rest of the budget doesn't cover another call."""

    default_kind = "budget"


class PatienceError(UnaskedError):
    """The provider is rate-limited for longer than the call may wait."""

    default_kind = "rate_limit"


class TerminalError(ExecutorError):
    """Every item would fail in the same way; the fan-out stops."""

    default_kind = "terminal"


class BrokenCheckError(TerminalError):
    """A check or a validator of the user's own raised, so no other model can succeed."""


class CoverageError(DispatchError):
    """There isn't exactly one outcome for each (brief, item).

    Attributes:
        missing: Pairs without an outcome.
        repeated: Pairs with more than one.
        unknown: Outcomes of pairs that are not part of the work.
    """

    def __init__(self, missing: Sequence[Ref], repeated: Sequence[Ref], unknown: Sequence[Ref]) -> None:
        """Store the three lists."""
        super().__init__(missing, repeated, unknown)
        self.missing, self.repeated, self.unknown = tuple(missing), tuple(repeated), tuple(unknown)

    def __str__(self) -> str:
        """Return the missing, repeated and unknown pairs as one text."""
        parts = [
            f"{name}: {', '.join(map(str, refs))}"
            for name, refs in (("missing", self.missing), ("repeated", self.repeated), ("unknown", self.unknown))
            if refs
        ]
        return "Outcomes and work don't match; " + "; ".join(parts) + "."


class MergeError(DispatchError):
    """The integrator raised; the answers of the agents are stored.

    Attributes:
        asked: The outcomes of the integrator's own queries.
    """

    def __init__(self, message: str, asked: Sequence[Outcome] = ()) -> None:
        """Store the outcomes of the queries."""
        super().__init__(message, asked)
        self.asked = tuple(asked)


class AuditError(DispatchError):
    """The merged value contradicts the outcomes.

    Attributes:
        violations: Every difference that was found.
        merge: The merge that failed the audit, not to be used.
    """

    def __init__(self, violations: Sequence[Violation], merge: Merge) -> None:
        """Store the violations and the merge."""
        super().__init__(violations, merge)
        self.violations = tuple(violations)
        self.merge = merge

    def __str__(self) -> str:
        """Return the violations as one text."""
        return "The merged value failed its audit: " + " ".join(map(str, self.violations))


class DispatchFailed(DispatchError):  # noqa: N818 -- named after the state of the run
    """The run failed; its report says how each item ended.

    Attributes:
        report: The report of the failed run.
    """

    def __init__(self, message: str, report: Report) -> None:
        """Store the report."""
        super().__init__(message, report)
        self.report = report


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return where the first error of a validation is, as a dotted path, and its message."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
