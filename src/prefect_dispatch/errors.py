"""Every error of this package, and what it means for the run.

DispatchError
├── JobError               the job is unusable; nothing was spent
│   ├── BriefError         a brief is wrong
│   ├── SourceError        the items can't be read, or none are there
│   └── DependenceError    the work isn't independent: .findings
├── ExecutorError          one ask failed: .kind .usage
│   ├── TransientError     worth a retry (5xx, cut connection, time-out)
│   │   └── BusyError      the provider asks to wait (429, overloaded): .retry_after_s
│   ├── FormRefusedError  the server refuses how the form is asked for; the call is made again in another way
│   ├── InvalidOutput      no valid answer after the re-asks: .problems
│   ├── RejectedError      this item is refused, others may pass (400, content policy, too long)
│   ├── UnaskedError       the call was not sent, and to try at once again is pointless
│   │   ├── BudgetError    the budget doesn't hold it
│   │   └── PatienceError  the provider takes no more for longer than the call may wait
│   └── TerminalError      every item would fail alike (401, unknown model): the fan-out stops
├── CoverageError          not one outcome for each (brief, item): .missing .repeated .unknown
├── MergeError             the integrator raised: .asked
├── AuditError             the merged value isn't what the outcomes say: .violations .merge
├── ServerError            the temporary Prefect server of this process can't be started
└── DispatchFailed         the run ended as failed: .report
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from prefect_dispatch.ledger import Merge, Ref, Violation
    from prefect_dispatch.models import Attempt, Outcome, Usage
    from prefect_dispatch.report import Report


class DispatchError(Exception):
    """The base of every error raised by this package."""

    def __repr__(self) -> str:
        """Return the message alone: what else an error carries doesn't belong into a log."""
        return f"{type(self).__name__}({str(self)!r})"


class ServerError(DispatchError):
    """The temporary Prefect server of this process can't be started."""


class JobError(DispatchError):
    """The job is unusable as it stands; nothing was spent."""


class BriefError(JobError):
    """A brief is wrong; no retry can mend it."""


class SourceError(JobError):
    """The items can't be read, or there are none."""


class DependenceError(JobError):
    """Two pieces of work are not independent of each other.

    Attributes:
        findings: One sentence for each pair, with the way out.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        """Keep the findings and make one message of them."""
        super().__init__(findings)
        self.findings = tuple(findings)

    def __str__(self) -> str:
        """Return the findings as one text."""
        return "The work is not independent: " + " ".join(self.findings)


class ExecutorError(DispatchError):
    """One ask failed.

    Attributes:
        kind: The class of failure, as it stands in outcomes and reports.
        usage: What was spent on the ask all the same.
        attempts: Every attempt at this piece of work so far, this one included.
        trace: The end of the message that names a log, say: it is another in each run, and told of the attempt alone.
    """

    default_kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, kind: str | None = None, usage: Usage | None = None) -> None:
        """Keep the message, the class of failure and the spending."""
        super().__init__(message.encode("utf-8", "replace").decode())
        self.kind = kind or self.default_kind
        self.usage = usage
        self.attempts: tuple[Attempt, ...] = ()
        self.trace = ""

    def traced(self, trace: str) -> Self:
        """Add where more of it stands to the message; return this error."""
        self.args = (f"{self} {trace}",)
        self.trace = f"{self.trace} {trace}"
        return self


class TransientError(ExecutorError):
    """Worth a retry: a 5xx, a cut connection, a time-out."""

    default_kind = "transient"


class BusyError(TransientError):
    """The provider takes no more for now; waiting for it is no attempt.

    Attributes:
        retry_after_s: Seconds after which it wants to be asked again, where it said so.
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
        """Keep the wait beside what every executor error keeps."""
        super().__init__(message, kind=kind, usage=usage)
        self.retry_after_s = retry_after_s


class InvalidOutput(ExecutorError):  # noqa: N818 -- the design's word
    """No valid answer came, even after the re-asks.

    Attributes:
        problems: What was wrong with the last answer.
    """

    default_kind = "invalid_output"

    def __init__(
        self, message: str, *, problems: Sequence[str] = (), kind: str | None = None, usage: Usage | None = None
    ) -> None:
        """Keep the problems beside what every executor error keeps."""
        super().__init__(message, kind=kind, usage=usage)
        self.problems = tuple(problems)


class RejectedError(ExecutorError):
    """This item was refused by the agent or its provider; others may pass."""

    default_kind = "rejected"


class FormRefusedError(ExecutorError):
    """The server refuses how the form of the answer is asked for; the call is made again in another way."""

    default_kind = "form_refused"


class UnaskedError(ExecutorError):
    """The call was not sent, and to try at once again is pointless."""

    default_kind = "unasked"


class BudgetError(UnaskedError):
    """The budget doesn't hold another call."""

    default_kind = "budget"


class PatienceError(UnaskedError):
    """The provider takes no more for longer than the call may wait."""

    default_kind = "rate_limit"


class TerminalError(ExecutorError):
    """Every item would fail in the same way; the fan-out stops."""

    default_kind = "terminal"


class CoverageError(DispatchError):
    """There isn't exactly one outcome for each (brief, item).

    Attributes:
        missing: Pairs without an outcome.
        repeated: Pairs with more than one.
        unknown: Outcomes of pairs that nobody asked for.
    """

    def __init__(self, missing: Sequence[Ref], repeated: Sequence[Ref], unknown: Sequence[Ref]) -> None:
        """Keep the three lists."""
        super().__init__(missing, repeated, unknown)
        self.missing, self.repeated, self.unknown = tuple(missing), tuple(repeated), tuple(unknown)

    def __str__(self) -> str:
        """Name what is missing, repeated and unknown."""
        parts = [
            f"{name}: {', '.join(map(str, refs))}"
            for name, refs in (("missing", self.missing), ("repeated", self.repeated), ("unknown", self.unknown))
            if refs
        ]
        return "Outcomes and work don't match; " + "; ".join(parts) + "."


class MergeError(DispatchError):
    """The integrator raised; what agents answered is stored.

    Attributes:
        asked: What came of the questions that the integrator put to an agent itself.
    """

    def __init__(self, message: str, asked: Sequence[Outcome] = ()) -> None:
        """Keep what was asked."""
        super().__init__(message, asked)
        self.asked = tuple(asked)

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.args[0])


class AuditError(DispatchError):
    """The merged value is not what the outcomes say.

    Attributes:
        violations: Every difference that was found.
        merge: What the integrator made, not to be used.
    """

    def __init__(self, violations: Sequence[Violation], merge: Merge) -> None:
        """Keep the violations and what they are about."""
        super().__init__(violations, merge)
        self.violations = tuple(violations)
        self.merge = merge

    def __str__(self) -> str:
        """Return the violations as one text."""
        return "The merged value failed its audit: " + " ".join(map(str, self.violations))


class DispatchFailed(DispatchError):  # noqa: N818 -- reads as the state it stands for
    """The run failed; its report says how each item ended.

    Attributes:
        report: The report of the failed run.
    """

    def __init__(self, message: str, report: Report) -> None:
        """Keep the report."""
        super().__init__(message, report)
        self.report = report

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.args[0])
