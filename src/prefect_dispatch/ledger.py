"""Where everything ended: dispositions, merged fields, and what an integrator returns."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from natsort import natsort_keygen
from pydantic import Field, JsonValue, StringConstraints, ValidationInfo, field_validator

from prefect_dispatch.models import Outcome
from prefect_dispatch.strict import Numerous, Strict

if TYPE_CHECKING:
    from prefect_dispatch.report import Gap

_split = natsort_keygen()
_once = lru_cache(maxsize=1 << 10)(str)  # the words between the numbers are mostly the same


@lru_cache(maxsize=1 << 17)  # every list of a merge is sorted by it
def _natural(key: str) -> tuple[Any, ...]:
    return tuple([_once(part) if isinstance(part, str) else part for part in _split(key)])


RESERVED = frozenset({"report.json", "report.md", "report.html", "outcomes.jsonl", "questions.jsonl", "ab-test.json"})
"""Names of files that every run may write."""

Disposition = Literal["merged", "duplicate_of", "overridden", "failed", "skipped"]


class Ref(Numerous):
    """Names one outcome.

    Example:
        >>> str(Ref(brief="terms", item="mit.txt"))
        'terms/mit.txt'
    """

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""

    def __eq__(self, other: object) -> bool:
        """Return whether it names the same: pydantic's own comparison takes several times as long."""
        return isinstance(other, Ref) and self.item == other.item and self.brief == other.brief

    def __hash__(self) -> int:
        """Return the hash; written down because type checkers don't see that the base is frozen."""
        return hash((self.brief, self.item))

    def __str__(self) -> str:
        """Return brief and item as one word."""
        return f"{self.brief}/{self.item}"

    @classmethod
    def of(cls, outcome: Outcome | LedgerRow | Gap) -> Ref:
        """Return the name of an outcome, or of the outcome that a row is about."""
        return named(outcome.brief, outcome.item)

    @property
    def order(self) -> tuple[Any, str, str]:
        """The place in every list: by the item's key (numbers inside by their value), then by brief."""
        return place_of(self.brief, self.item)


def place_of(brief: str, item: str) -> tuple[Any, str, str]:
    """Return the place of a (brief, item) in every list, as `Ref.order` has it."""
    return (_natural(item), item, brief)


@lru_cache(maxsize=1 << 17)
def named(brief: str, item: str) -> Ref:
    """Return the name of the outcome of a brief for an item: frozen, and wanted often, so one object will do."""
    return Ref(brief=brief, item=item)


class LedgerRow(Numerous):
    """Where one outcome ended in the merged value."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    disposition: Disposition
    """Where it ended; there is exactly one row for each (brief, item)."""
    by: Ref | None = None
    """The outcome that it is a duplicate of, or that overrode it."""
    reason: str = ""
    """The rule that decided, or what went wrong."""


class Loser(Numerous):
    """A value that a rule removed from a merged field."""

    value: JsonValue
    """What was removed."""
    sources: tuple[Ref, ...]
    """The outcomes that said so."""


class FieldRow(Numerous):
    """How one field of the merged value came about."""

    path: str
    """JSON Pointer (RFC 6901) into the merged value."""
    winner: JsonValue
    """What stands there."""
    losers: tuple[Loser, ...] = ()
    """What does not, and who said it."""
    rule: str
    """The rule that decided."""
    sources: tuple[Ref, ...]
    """The outcomes that the winner comes from."""


class LongFieldRow(FieldRow):
    """A field row as report.json has it where its winner is long: that stands in the value alone."""

    winner_at: str
    """JSON Pointer to the winner in the merged value."""


class Proposal(Strict):
    """Two records that may be the same, and were left apart for want of certainty."""

    left: JsonValue
    """The identity of the one that comes first."""
    right: JsonValue
    """The identity of the other."""
    score: float = Field(ge=0, le=1)
    """How alike they are, 1 being equal."""
    why: str
    """What was compared, in a sentence."""
    left_sources: tuple[Ref, ...]
    """The outcomes that name the one."""
    right_sources: tuple[Ref, ...]
    """The outcomes that name the other."""


class Flag(Strict):
    """A place in the merged value that a reader should not take on trust."""

    path: str
    """JSON Pointer (RFC 6901) into the merged value."""
    kind: str
    """What is doubtful, in a word: `number`, `date`, `quotation`, `citation`, `claim`, `conflict`, …"""
    text: str
    """The words in question, as they stand there."""
    start: int | None = Field(default=None, ge=0)
    """Where they start in the text at that path, in characters; empty where the whole value is meant."""
    message: str
    """What is wrong, in a sentence."""
    sources: tuple[Ref, ...] = ()
    """The outcomes that were looked into."""


class Table(Strict):
    """Figures that an integrator gives along with its value."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
    """What it is called, in a file's name too; unique within a merge."""
    title: str
    """Its heading."""
    rows: tuple[dict[str, JsonValue], ...] = ()
    """The rows; all have the same keys, in the order of the columns."""
    note: str = ""
    """How to read it."""


class Document(Strict):
    """A text that an integrator gives along with its value; a file of that name where a run writes files."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([-.][a-z0-9]+)*$", max_length=60)]
    """The name of the file, such as `junit.xml`; unique within a merge."""
    title: str
    """What it is, in a few words."""
    text: str
    """What stands in it."""

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in RESERVED or name.endswith(".csv"):
            raise ValueError(f"{name!r} is the name of a file that a run writes itself; give the document another")
        return name


class LongDocument(Document):
    """A document as report.json has it where it is long: its text stands in the file of its name alone."""

    sha256: str
    """The digest of the text in UTF-8."""
    bytes: int
    """Its length in UTF-8."""


_T = TypeVar("_T", Table, Document)


class Merge(Strict):
    """What an integrator returns."""

    value: JsonValue
    """The merged value."""
    ledger: tuple[LedgerRow, ...]
    """One row for each outcome, in any order."""
    fields: tuple[FieldRow, ...] = ()
    """One row for each merged field, in any order."""
    rules: str = ""
    """The rules that were applied, in a paragraph that a reviewer can contest."""
    proposals: tuple[Proposal, ...] = ()
    """Pairs that somebody should decide on."""
    flags: tuple[Flag, ...] = ()
    """Places that a reader should not take on trust."""
    tables: tuple[Table, ...] = ()
    """Figures beside the value."""
    documents: tuple[Document, ...] = ()
    """Texts beside the value."""
    failed: str = ""
    """Why the run has failed although agents answered, in a sentence, such as a required test that did not pass."""
    shortfalls: tuple[str, ...] = ()
    """What the integrator could not do, a sentence each; a run that has any completes with gaps."""
    asked: tuple[Outcome, ...] = Field(default=(), exclude=True)
    """What came of the integrator's own questions to an agent; the task that runs it fills this in."""

    @field_validator("tables", "documents")
    @classmethod
    def _have_names_of_their_own(cls, given: tuple[_T, ...], info: ValidationInfo) -> tuple[_T, ...]:
        names = [each.name for each in given]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {info.field_name} are called {twice[0]!r}; each needs a name of its own")
        return given


class Violation(Strict):
    """One difference that the audit found."""

    law: Literal["conservation", "recall", "precision", "schema", "idempotence"]
    """What does not hold."""
    where: str
    """The outcome (`brief/item`) or the field (JSON Pointer) that it is about."""
    message: str
    """What is wrong."""

    def __str__(self) -> str:
        """Return the violation as a sentence."""
        return f"{self.law} at {self.where}: {self.message}"
