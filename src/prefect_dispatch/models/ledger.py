"""Ledger of a merge: the disposition of every outcome, the merged fields, and the result of an integrator."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from natsort import natsort_keygen
from pydantic import Field, JsonValue, StringConstraints, ValidationInfo, field_validator

from prefect_dispatch.models.base import CompactFrozen, Strict
from prefect_dispatch.models.outcome import Failure, Outcome

if TYPE_CHECKING:
    from collections.abc import Collection

_natural_key = natsort_keygen()
_cached_text = lru_cache(maxsize=1 << 10)(str)  # keys share most of the words between their numbers


@lru_cache(maxsize=1 << 17)  # every list of a merge is sorted by it
def _natural(key: str) -> tuple[Any, ...]:
    return tuple([_cached_text(part) if isinstance(part, str) else part for part in _natural_key(key)])


RESERVED = frozenset({"report.json", "report.md", "report.html", "outcomes.jsonl", "questions.jsonl", "ab-test.json"})
"""Names of the files that every run may write."""

Disposition = Literal["merged", "duplicate_of", "overridden", "failed", "skipped"]


class Ref(CompactFrozen):
    """Reference to an outcome, by brief and item.

    Example:
        >>> str(Ref(brief="terms", item="mit.txt"))
        'terms/mit.txt'
    """

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""

    def __eq__(self, other: object) -> bool:
        """Return whether it refers to the same outcome; several times as fast as pydantic's comparison."""
        return isinstance(other, Ref) and self.item == other.item and self.brief == other.brief

    def __hash__(self) -> int:
        """Return the hash; defined here as type checkers don't see that the base class is frozen."""
        return hash((self.brief, self.item))

    def __str__(self) -> str:
        """Return `brief/item`."""
        return f"{self.brief}/{self.item}"

    @classmethod
    def of(cls, outcome: Outcome | LedgerRow | Gap) -> Ref:
        """Return the reference of an outcome, or of the outcome of a row or gap."""
        return make_ref(outcome.brief, outcome.item)

    @property
    def order(self) -> tuple[Any, str, str]:
        """The sort key in every list: the item's key (numbers in it by their value), then the brief."""
        return sort_key(self.brief, self.item)


def sort_key(brief: str, item: str) -> tuple[Any, str, str]:
    """Return the sort key of a (brief, item); see `Ref.order`."""
    return (_natural(item), item, brief)


@lru_cache(maxsize=1 << 17)
def make_ref(brief: str, item: str) -> Ref:
    """Return the reference to the outcome of a brief for an item, from a cache: it is frozen, and often needed."""
    return Ref(brief=brief, item=item)


def select_refs(pattern: str, refs: Collection[Ref]) -> frozenset[Ref]:
    """Return the references that a pattern selects; empty if it selects none.

    Args:
        pattern: It selects each reference whose item's key, or whose name `brief/item`, it equals or matches as a
            glob: `*` and `?` match `/`, too. Where it matches no item, the name of a brief selects all of its work.
        refs: The references.

    Example:
        >>> [str(ref) for ref in select_refs("m*", [make_ref("terms", "mit.txt"), make_ref("terms", "isc.txt")])]
        ['terms/mit.txt']
    """

    def matches(name: str) -> bool:
        return pattern == name or fnmatchcase(name, pattern)

    found = frozenset(ref for ref in refs if matches(ref.item) or matches(str(ref)))
    return found or frozenset(ref for ref in refs if ref.brief == pattern)


class LedgerRow(CompactFrozen):
    """Disposition of one outcome in the merged value."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    disposition: Disposition
    """The disposition; there is exactly one row for each (brief, item)."""
    by: Ref | None = None
    """The outcome that it is a duplicate of, or that overrode it."""
    reason: str = ""
    """The rule that decided, or the error."""


class Loser(CompactFrozen):
    """A value that a rule removed from a merged field."""

    value: JsonValue
    """What was removed."""
    sources: tuple[Ref, ...]
    """The outcomes with that value."""


class FieldRow(CompactFrozen):
    """Provenance of one field of the merged value."""

    path: str
    """JSON Pointer (RFC 6901) into the merged value."""
    winner: JsonValue
    """The value of the field."""
    losers: tuple[Loser, ...] = ()
    """The values that were removed, and their outcomes."""
    rule: str
    """The rule that decided."""
    sources: tuple[Ref, ...]
    """The outcomes that the winner comes from."""


class LongFieldRow(FieldRow):
    """A field row in report.json whose winner is long, and so stands only in the merged value."""

    winner_at: str
    """JSON Pointer to the winner in the merged value."""


class Proposal(Strict):
    """Two records that may be the same, but were not merged, as that is uncertain."""

    left: JsonValue
    """The identity of the first record."""
    right: JsonValue
    """The identity of the second record."""
    score: float = Field(ge=0, le=1)
    """Their similarity, 1 being equal."""
    why: str
    """What was compared, in a sentence."""
    left_sources: tuple[Ref, ...]
    """The outcomes that contain the first record."""
    right_sources: tuple[Ref, ...]
    """The outcomes that contain the second record."""


class Flag(Strict):
    """A doubtful place in the merged value, for a reader to verify."""

    path: str
    """JSON Pointer (RFC 6901) into the merged value."""
    kind: str
    """What is doubtful, in a word: `number`, `date`, `quotation`, `citation`, `claim`, `conflict`, …"""
    text: str
    """The doubtful words, verbatim."""
    start: int | None = Field(default=None, ge=0)
    """Where they start in the text at that path, in characters; empty if the whole value is doubtful."""
    message: str
    """What is wrong, in a sentence."""
    sources: tuple[Ref, ...] = ()
    """The outcomes that were examined."""


ACCURACY = "accuracy"
"""Name of the table that compares answers with expected ones; its note is the result in a sentence."""

TO_DECIDE = "to-decide.md"
"""Name of the document with lines for the decisions file, which a run adds that ends with open decisions."""
CASCADE = "cascade"
"""Name of the table of which model of a cascade answered, and why, which a run adds."""
WEB_SOURCES = "web-sources"
"""Name of the table of the pages that web searches returned, which a run adds to those of the integrator."""
DIFFERENCE = "merge-difference"
"""Name of the table of how a merge differs from that of the report which was merged again."""


class Table(Strict):
    """A table that an integrator returns along with its value."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
    """Its name, also in a file's name; unique within a merge."""
    title: str
    """Its heading."""
    rows: tuple[dict[str, JsonValue], ...] = ()
    """The rows; all have the same keys, in the order of the columns."""
    note: str = ""
    """How to read it."""


class Document(Strict):
    """A text that an integrator returns along with its value; a file of that name if the run writes files."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([-.][a-z0-9]+)*$", max_length=60)]
    """The name of the file, such as `junit.xml`; unique within a merge."""
    title: str
    """What it is, in a few words."""
    text: str
    """Its content."""

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in RESERVED or name.endswith(".csv"):
            raise ValueError(f"{name!r} is the name of a file that a run writes itself; give the document another")
        return name


class LongDocument(Document):
    """A long document in report.json: its text stands only in the file of its name."""

    sha256: str
    """The digest of the text in UTF-8."""
    bytes: int
    """Its length in UTF-8."""


_T = TypeVar("_T", Table, Document)


MAX_PLACES = 20
"""Places of a violated requirement that are listed; all of them are counted."""


class RequirementPlace(CompactFrozen):
    """A place in the merged value that violates a requirement."""

    path: str
    """JSON Pointer (RFC 6901) into the merged value."""
    sources: tuple[Ref, ...]
    """The outcomes that the value at that place comes from, the first `MAX_PLACES` of them."""
    message: str
    """What is wrong, in a sentence."""


class Requirement(Strict):
    """A requirement of a brief, compared with the merged value."""

    brief: str
    """The brief's name (of samples, that of the original brief); empty for constraints of the integrator's own."""
    kind: Literal["output", "check", "scope", "constraint"]
    """The part of the brief that states it."""
    text: str
    """The requirement in words."""
    verdict: Literal["met", "violated", "not_checkable"]
    """`met` and `violated` are findings of code, or opinions of a judge where `note` says so."""
    checked: int = 0
    """Number of places that were compared: answers, records or files in the merged value."""
    violations: int = 0
    """Number of those that violate it."""
    places: tuple[RequirementPlace, ...] = ()
    """The places that violate it, the first `MAX_PLACES` of them in the order of the merged value."""
    note: str = ""
    """Why it can't be checked, or who judged."""

    def __str__(self) -> str:
        """Return the requirement and its verdict as a sentence.

        Example:
            >>> print(Requirement(brief="terms", kind="constraint", text="Be brief.", verdict="not_checkable"))
            not checkable: constraint of terms: Be brief.
        """
        where = f" (at {', '.join(each.path or '/' for each in self.places)})" if self.places else ""
        of = f" of {self.brief}" if self.brief else ""
        return f"{self.verdict.replace('_', ' ')}: {self.kind}{of}: {self.text}{where}"


class Merge(Strict):
    """Result of an integrator."""

    value: JsonValue
    """The merged value."""
    ledger: tuple[LedgerRow, ...]
    """One row for each outcome, in any order."""
    fields: tuple[FieldRow, ...] = ()
    """One row for each merged field, in any order."""
    rules: str = ""
    """The rules that were applied, in a paragraph that a reviewer can contest."""
    proposals: tuple[Proposal, ...] = ()
    """Pairs of records for a reviewer to decide on."""
    flags: tuple[Flag, ...] = ()
    """Doubtful places in the value, for a reader to verify."""
    tables: tuple[Table, ...] = ()
    """Tables in addition to the value."""
    documents: tuple[Document, ...] = ()
    """Texts in addition to the value."""
    failed: str = ""
    """Why the run has failed although agents answered, in a sentence, such as a required test that did not pass."""
    shortfalls: tuple[str, ...] = ()
    """What the integrator could not do, a sentence each; a run that has any completes with gaps."""
    asked: tuple[Outcome, ...] = Field(default=(), exclude=True)
    """Outcomes of the integrator's own queries to an agent; the task that runs it fills this in."""
    requirements: tuple[Requirement, ...] = Field(default=(), exclude=True)
    """What the briefs require, compared with the value; the task that runs the integrator fills this in."""

    @field_validator("tables", "documents")
    @classmethod
    def _have_names_of_their_own(cls, given: tuple[_T, ...], info: ValidationInfo) -> tuple[_T, ...]:
        names = [each.name for each in given]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {info.field_name} are called {twice[0]!r}; each needs a name of its own")
        return given


class Violation(Strict):
    """A violation of a law that the audit found."""

    law: Literal["conservation", "recall", "precision", "schema", "idempotence"]
    """The law."""
    where: str
    """The outcome (`brief/item`) or the field (JSON Pointer) concerned."""
    message: str
    """What is wrong."""

    def __str__(self) -> str:
        """Return the violation as a sentence."""
        return f"{self.law} at {self.where}: {self.message}"


class Gap(Strict):
    """A (brief, item) without an answer."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    status: Literal["failed", "skipped"]
    """Failed after its attempts, or not asked."""
    error: Failure
    """The reason."""
