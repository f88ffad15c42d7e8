"""Answers and outcomes of a job, with attempts and usage, and the states of an item from the plan to the ledger."""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from datetime import date
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AwareDatetime, Field, JsonValue, StringConstraints, field_validator
from typing_extensions import override

from prefect_dispatch.models.base import CompactFrozen, Frozen, Strict
from prefect_dispatch.models.cascade_decision import CascadeDecision  # noqa: TC001 -- a field of a model
from prefect_dispatch.security.escaping import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable


LONGEST_TEXT = 2_000
"""Characters of an invalid answer that an attempt stores."""

LONGEST_PROBLEM = 500
"""Characters of a problem of an invalid answer that an attempt stores."""

MOST_PROBLEMS = 20
"""Problems of an invalid answer that an attempt stores."""

LONGEST_NOTE = 500
"""Characters of a note of an executor that an attempt stores."""

MOST_NOTES = 20
"""Notes of an executor that an attempt stores."""


class ItemState(str, Enum):
    """State of one item for one brief.

    The states of an outcome are `ANSWERED`, `CACHED`, `SHARED`, `FAILED` and `SKIPPED`; a merge gives each outcome one
    of the dispositions `MERGED`, `DUPLICATE_OF`, `OVERRIDDEN`, `FAILED` and `SKIPPED`. The states before an outcome
    are of the run alone: a run that is interrupted in one of them starts again from the store and its checkpoints.

    Example:
        >>> sorted(state.value for state in ItemState.CACHED.next_states)
        ['duplicate_of', 'merged', 'overridden']
    """

    PLANNED = "planned"
    """Prepared: it has a fingerprint, and nothing was sent for it."""
    QUEUED = "queued"
    """Waits for a free place of the fan-out; has no task run."""
    WAITING = "waiting"
    """Has a task run, and waits: for the budget, a slot, the rate limit, a busy provider or the delay of a retry."""
    IN_FLIGHT = "in_flight"
    """A request was sent, alone or in a provider's batch, and its response has not come; a checkpoint notes it."""
    INVALID = "invalid"
    """The reply did not pass validation; it is sent back while the brief has re-asks, and models to ask, left."""
    SPLIT = "split"
    """It is too long for the model: its parts are asked, each as an item of its own, and their answers joined."""
    ANSWERED = "answered"
    """A valid answer was received in this run, and stored."""
    CACHED = "cached"
    """A valid answer was found in the store."""
    SHARED = "shared"
    """Its work is equal to that of another item, whose answer it has."""
    FAILED = "failed"
    """It was asked, and has no valid answer after all its retries."""
    SKIPPED = "skipped"
    """Nothing was sent for it: budget spent, circuit open, stopped after the pilot, or what it needs has no answer."""
    MERGED = "merged"
    """Its answer is in the merged value."""
    DUPLICATE_OF = "duplicate_of"
    """Its answer says the same as that of another item, which is in the merged value."""
    OVERRIDDEN = "overridden"
    """Its answer lost a conflict against that of another item."""

    @property
    def next_states(self) -> frozenset[ItemState]:
        """The states that may follow; empty for a final state."""
        return _NEXT[self]


_STATES_OF_ANSWER = frozenset({ItemState.MERGED, ItemState.DUPLICATE_OF, ItemState.OVERRIDDEN})
_NEXT: dict[ItemState, frozenset[ItemState]] = {
    **dict.fromkeys(ItemState, frozenset[ItemState]()),
    ItemState.PLANNED: frozenset({ItemState.CACHED, ItemState.QUEUED, ItemState.SKIPPED}),
    # Equal work is queued once; its other items share the answer. A provider's batch needs no task run.
    ItemState.QUEUED: frozenset(
        {
            ItemState.WAITING,
            ItemState.IN_FLIGHT,
            ItemState.SPLIT,
            ItemState.SHARED,
            ItemState.FAILED,
            ItemState.SKIPPED,
        }
    ),
    # What a lost worker or a batch leaves without an answer is queued again.
    ItemState.WAITING: frozenset({ItemState.IN_FLIGHT, ItemState.QUEUED, ItemState.FAILED, ItemState.SKIPPED}),
    ItemState.IN_FLIGHT: frozenset(
        {
            ItemState.ANSWERED,
            ItemState.INVALID,
            ItemState.WAITING,
            ItemState.QUEUED,
            ItemState.SPLIT,
            ItemState.FAILED,
        }
    ),
    ItemState.INVALID: frozenset({ItemState.WAITING, ItemState.QUEUED, ItemState.FAILED}),
    ItemState.SPLIT: frozenset({ItemState.ANSWERED, ItemState.CACHED, ItemState.FAILED, ItemState.SKIPPED}),
    **dict.fromkeys((ItemState.ANSWERED, ItemState.CACHED, ItemState.SHARED), _STATES_OF_ANSWER),
}


class Usage(CompactFrozen):
    """Requests, tokens and cost of one call or several.

    Example:
        >>> (Usage(requests=1, prompt_tokens=10, cost_usd=0.5) + Usage(requests=1, cost_usd=None)).cost_usd is None
        True
    """

    requests: int = Field(default=0, ge=0)
    """Calls sent to the agent or its provider, answered or not."""
    prompt_tokens: int = Field(default=0, ge=0)
    """Tokens sent, as the provider counted them."""
    completion_tokens: int = Field(default=0, ge=0)
    """Tokens received, as the provider counted them."""
    cost_usd: float | None = Field(default=0.0, ge=0, allow_inf_nan=False)
    """US dollars; empty where the price is unknown."""
    estimated_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The part of `cost_usd` that no provider reported: computed from a coding agent's token counts and a price."""
    unsettled: int = Field(default=0, ge=0)
    """Calls of unknown usage: sent, and cut off, timed out or lost. They may have cost something."""
    cached_tokens: int = Field(default=0, ge=0)
    """The part of `prompt_tokens` that the provider found in its cache."""
    cache_write_tokens: int = Field(default=0, ge=0)
    """The part of `prompt_tokens` that it has written into its cache, where it bills that."""

    def __add__(self, other: Usage) -> Usage:
        """Return the sum; an unknown price makes the sum unknown."""
        known = self.cost_usd is not None and other.cost_usd is not None
        return _cached_usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            (self.cost_usd or 0) + (other.cost_usd or 0) if known else None,
            self.estimated_usd + other.estimated_usd,
            self.unsettled + other.unsettled,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )

    @property
    def tokens(self) -> int:
        """Tokens sent and received."""
        return self.prompt_tokens + self.completion_tokens


@lru_cache(maxsize=1 << 12)
def _cached_usage(*values: float | None) -> Usage:
    """Return the usage of the values of all fields, from a cache: it is frozen, and many calls have the same usage."""
    return Usage.model_validate(dict(zip(Usage.model_fields, values, strict=True)))


Step = Literal["ask", "retry", "re-ask", "cascade", "fallback"]
"""Why calls were sent: first asks; first asks of an attempt that follows a failed one; invalid answers sent back; the
cheap model of a cascade; a model to which an item was passed on."""
LIVE = "live"
"""The price tier of calls that are answered at once, at the regular price."""
BATCH = "batch"
"""The price tier of requests in a file for a provider's batch API."""


class UsageShare(CompactFrozen):
    """Part of an attempt's usage: that of the calls with one model, one price tier and one reason."""

    model: str = ""
    """The model that was asked; empty if that is unknown, or it was no language model."""
    tier: str = LIVE
    """The price tier: `live`, `batch` or another one of the provider's."""
    step: Step = "ask"
    """Why the calls were sent; `retry` follows from the attempt before, and is never stored."""
    usage: Usage
    """The usage of these calls."""


class Citation(Frozen):
    """A page that a model's web search returned, as its provider cites it."""

    url: str
    """Its address: http or https."""
    title: str = ""
    """Its title; truncated."""
    published: str = ""
    """Its date or age in the provider's words; empty where the provider gives none."""
    retrieved: date
    """The day (UTC) on which the provider returned it."""


class Failure(Frozen):
    """The reason why an outcome has no value."""

    kind: str
    """The class of failure: `transient`, `timeout`, `invalid_output`, `truncated`, `empty`, `refused`, …"""
    message: str
    """What happened, in a sentence."""


class Rejection(Frozen):
    """An invalid answer."""

    text: str
    """The answer as it was received, without secrets."""
    problems: tuple[str, ...]
    """The problems that validation found."""

    @property
    def truncated(self) -> Rejection:
        """The rejection as an attempt stores it: truncated texts end in `…`.

        Example:
            >>> len(Rejection(text="word " * 1000, problems=("It is too long.",)).truncated.text)
            2000
        """
        problems = [shorten(problem, LONGEST_PROBLEM) for problem in self.problems[:MOST_PROBLEMS]]
        return Rejection(text=shorten(self.text, LONGEST_TEXT), problems=tuple(problems))


class Attempt(CompactFrozen):
    """One attempt at one ask: a request and its re-asks."""

    part: str = ""
    """The part of an item that was too long: `2`, or `2.1` where that was split again; empty: the whole item."""
    model: str = ""
    """The model that was asked last; empty if an earlier version stored it, and if it was no language model."""
    served_model: str = ""
    """The model that its response named; empty where it named none."""
    usage: Usage = Usage()
    """Usage of this attempt."""
    reasks: int = Field(default=0, ge=0)
    """How often an invalid answer was sent back."""
    rejections: tuple[Rejection, ...] = ()
    """Every invalid answer, oldest first: those that were sent back, and the last one if none was valid; truncated."""
    waits: int = Field(default=0, ge=0)
    """How often the provider was busy, and was waited for."""
    escalations: tuple[Failure, ...] = ()
    """Why each model before the last one was given up, in order."""
    started: AwareDatetime | None = None
    """When it started; empty in a batch, and where an earlier version stored it."""
    seconds: float = Field(default=0.0, ge=0)
    """Its duration in seconds, without the waits."""
    waited_s: float = Field(default=0.0, ge=0)
    """Seconds that it waited: for a busy provider, for the rate limit, for the budget."""
    notes: tuple[str, ...] = ()
    """Notes of the executor on its work, such as commands that a coding agent's own policy refused; truncated."""
    error: str | None = None
    """The failure that ended the attempt, unless it succeeded: its class and message."""

    @property
    def usage_shares(self) -> tuple[UsageShare, ...]:
        """Its usage by model, price tier and reason; as a whole where it has one of each."""
        return (UsageShare(model=self.model, usage=self.usage),)


class ItemizedAttempt(Attempt):
    """Attempt with re-asks, with several models, or at another price than that of live calls.

    A class of its own, so that other attempts are stored as they always were.
    """

    shares: tuple[UsageShare, ...]
    """Its usage by model, price tier and reason."""

    @property
    @override
    def usage_shares(self) -> tuple[UsageShare, ...]:
        """Its usage by model, price tier and reason."""
        return self.shares


class CascadeAttempt(Attempt):
    """Attempt by an executor with a cascade; a class of its own for the same reason."""

    cascade: CascadeDecision
    """Which model answered, and why."""
    shares: tuple[UsageShare, ...] = ()
    """Its usage by model, price tier and reason; empty if an earlier version stored it."""

    @property
    @override
    def usage_shares(self) -> tuple[UsageShare, ...]:
        """Its usage by model, price tier and reason."""
        return self.shares or super().usage_shares


AnyAttempt = Annotated[Attempt | ItemizedAttempt | CascadeAttempt, Field(union_mode="left_to_right")]
"""An attempt of any class; most are of the first, so that is tried first."""


def answering_models(attempts: Iterable[Attempt]) -> set[tuple[str, str]]:
    """Return the models that gave an answer: each as the one that was asked, and the one that its response named."""
    return {(each.model, each.served_model) for each in attempts if each.model and each.error is None}


def truncate_notes(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the notes as an attempt stores them: without duplicates, and truncated texts end in `…`.

    Example:
        >>> truncate_notes(("a", "b", "a"))
        ('a', 'b')
    """
    return tuple(shorten(note, LONGEST_NOTE) for note in dict.fromkeys(notes))[:MOST_NOTES]


ObjectId = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
"""The name of an object in git: 40 or 64 hexadecimal characters."""

_BASE64 = "base64:"


class ChangedFile(Strict):
    """One changed file."""

    path: str
    """Its path from the top of the repository, `/` between names; bytes that aren't UTF-8 as `\\xNN`."""
    change: Literal["added", "modified", "deleted", "typechange"]
    """The kind of change; a renamed file is one deleted and one added."""
    mode: str = ""
    """Its new mode in git: `100644`, `100755`, `120000`; empty if it was deleted."""


class Change(Strict):
    """The difference between the commit that work started from and its result.

    Example:
        >>> Change(base="0" * 40, tree="1" * 40).files
        ()
    """

    base: ObjectId
    """The commit that it started from."""
    tree: ObjectId
    """The resulting tree."""
    patch: str = ""
    """`git diff --binary --full-index --no-renames` between them; see `encode_patch` for one that isn't UTF-8."""
    files: tuple[ChangedFile, ...] = ()
    """The files that the patch changes, in the order of their paths."""

    @field_validator("patch")
    @classmethod
    def _can_be_read(cls, patch: str) -> str:
        try:
            _decode_patch(patch)
        except binascii.Error:
            raise ValueError("the patch is damaged: it is no base64") from None
        return patch

    @property
    def bytes(self) -> bytes:
        """The patch in bytes, for git."""
        return _decode_patch(self.patch)


def encode_patch(patch: bytes) -> str:
    r"""Return a patch as text: unchanged if it is UTF-8, else in base64 after `base64:`.

    Example:
        >>> encode_patch("é".encode()), encode_patch(b"\xff")
        ('é', 'base64:/w==')
    """
    with suppress(UnicodeDecodeError):
        text = patch.decode()
        if not text.startswith(_BASE64):
            return text
    return _BASE64 + base64.b64encode(patch).decode()


def _decode_patch(patch: str) -> bytes:
    """Return the bytes of a patch; raise `binascii.Error` if it is damaged."""
    if patch.startswith(_BASE64):
        return base64.b64decode(patch[len(_BASE64) :], validate=True)
    return patch.encode()


class Answer(CompactFrozen):
    """A valid answer as it is stored; any item or job with the same work reuses it."""

    value: JsonValue
    """The answer; it satisfies the brief's schema and checks."""
    said: JsonValue = None
    """The original value, if a pydantic model converted it."""
    change: Change | None = None
    """Its change of a repository, if it worked in one."""
    fingerprint: str = ""
    """Identity of the work that it answers; it must be equal to the name of the record."""
    model: str = ""
    """The model that answered."""
    served_model: str = ""
    """The model that the provider's response named; empty where it named none."""
    attempts: tuple[AnyAttempt, ...] = ()
    """The attempts; the last one succeeded."""
    joined: str = ""
    """How the answers to the parts of the item were joined, if it was too long."""
    citations: tuple[Citation, ...] = ()
    """The pages that the model's web search returned; empty without a search."""


class Outcome(CompactFrozen):
    """The result of one brief for one item."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    status: Literal["succeeded", "failed", "skipped"]
    """Its status; skipped means that no executor was called."""
    value: JsonValue = None
    """The answer; empty unless it succeeded."""
    change: Change | None = None
    """The change of a repository, if the executor worked in one and succeeded."""
    error: Failure | None = None
    """Why there is no answer."""
    model: str = ""
    """The model that answered."""
    served_model: str = ""
    """The model that the provider's response named; empty where it named none."""
    attempts: tuple[AnyAttempt, ...] = ()
    """The attempts, in this run or in the one that stored the answer."""
    origin: Literal["asked", "stored", "shared"] | None = None
    """Asked in this run, found in the store, or shared with an equal item of this run; empty if skipped."""
    fingerprint: str = ""
    """The identity of the work; the answer is stored under it."""
    joined: str = ""
    """How the answers to the parts of the item were joined, such as `3 parts, joined by merge_records`."""
    citations: tuple[Citation, ...] = ()
    """The pages that the model's web search returned; empty without a search."""
    brief_priority: int = 0
    """The brief's priority."""
    item_priority: int = 0
    """The item's priority."""

    @property
    def state(self) -> ItemState:
        """The state in which it left the fan-out: its status, and for an answer where it came from."""
        return ItemState(self.status) if self.status != "succeeded" else _STATE_OF_ORIGIN[self.origin]

    @property
    def failure(self) -> str:
        """Why there is no answer, as text: the class of failure, the message, and the path of a log if there is one.

        The path is only in the last attempt: the error itself must be the same in each run.
        """
        if self.error is None:
            return ""
        text = f"{self.error.kind}: {self.error.message}"
        last = self.attempts[-1].error if self.attempts else None
        return last if last and last.startswith(text) else text

    @property
    def spent(self) -> tuple[Attempt, ...]:
        """The attempts in this run: none unless it was asked in this run."""
        return self.attempts if self.origin == "asked" else ()

    @property
    def usage(self) -> Usage:
        """Its usage in this run."""
        spent = self.spent
        return spent[0].usage if len(spent) == 1 else sum((attempt.usage for attempt in spent), Usage())


_STATE_OF_ORIGIN = {
    None: ItemState.ANSWERED,
    "asked": ItemState.ANSWERED,
    "stored": ItemState.CACHED,
    "shared": ItemState.SHARED,
}
