"""What goes in and what comes back: briefs, items, answers, outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from glob import escape
from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, Field, JsonValue, PlainSerializer, StringConstraints, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.attempts import Attempt, Failure, Rejection, Usage
from prefect_dispatch.change import Change
from prefect_dispatch.checks import Check, Function, MustMention, source_digest
from prefect_dispatch.command import Command
from prefect_dispatch.outputs import Output, has_validators, normalise_output, show_output
from prefect_dispatch.references import REFERENCE
from prefect_dispatch.split import Split
from prefect_dispatch.strict import Kept, Numerous, Strict
from prefect_dispatch.template import render

__all__ = [
    "Answer",
    "Attempt",
    "Brief",
    "BriefsInput",
    "Failure",
    "Item",
    "Name",
    "Outcome",
    "OutputForm",
    "Rejection",
    "Text",
    "Usage",
    "as_briefs",
]

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
OutputForm = Annotated[
    Output,
    BeforeValidator(normalise_output),
    PlainSerializer(show_output, return_type=str),
    WithJsonSchema({"type": "string", "format": "json-string", "default": "text"}),
]
"""The form of an answer, however it is written down."""


class Item(Strict, Numerous):
    """One input.

    Example:
        >>> Item(key="mit.txt", value="Permission is hereby granted …").key
        'mit.txt'
    """

    key: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """What the item is called everywhere; unique within a job."""
    value: Kept
    """What the agent gets to see: text, or any JSON value."""
    priority: int = 0
    """A higher one wins a conflict between briefs of equal priority."""


class Brief(Strict):
    """What one agent is told.

    Text fields may use fields of the item, such as `{title}` (see `template`).

    Example:
        >>> Brief(name="summary", scope="One text.", instructions="Summarise it in a sentence.").output
        'text'
    """

    name: Name
    """What the brief is called everywhere: small letters, digits and single hyphens."""
    scope: str = ""
    """What the agent gets to see and is to judge, and what it is not."""
    instructions: Text
    """The work itself."""
    constraints: tuple[Text, ...] = ()
    """Rules that the answer must keep, one each."""
    output: OutputForm = "text"
    """The form of the answer: `text`, a JSON Schema, or `module:Name` of a pydantic model."""
    checks: tuple[Check, ...] = ()
    """What an answer must satisfy beyond its schema."""
    priority: int = 0
    """A higher one wins where answers of two briefs conflict."""
    reads: tuple[Text, ...] = ()
    """Globs of the files that the agent reads."""
    writes: tuple[Text, ...] = ()
    """Globs of the files that the agent writes."""
    resources: tuple[Text, ...] = ()
    """Names of things that only one agent may use at a time: a port, a database, a device."""
    samples: int = Field(default=1, ge=1, le=100)
    """How many answers of its own each item gets, for a `consensus`: as from briefs `name-1`, `name-2` and so on."""
    model: str = ""
    """Who is asked in place of the executor's model (and its fallbacks); for language models only."""
    command: Command | None = None
    """What a `Shell` runs; where a coding agent is asked, what must pass in its workspace afterwards."""
    split: Split | None = None
    """How an item that is too long for the model is cut and asked in parts. Empty: it fails."""
    sample: SkipJsonSchema[int] = Field(default=0, ge=0, le=100)
    """Which of several samples this is; set where a job is prepared, 0 before that and for a single one."""
    part: SkipJsonSchema[bool] = False
    """Whether the item is a part of one that was too long; set while a job runs."""

    def rendered(self, item: Item) -> Brief:
        """Return the brief as it reads for one item: placeholders filled in.

        In `reads` and `writes` a value stands for itself, as `glob.escape` has it: a file `[id].ts` is one file.

        Raises:
            BriefError: If it uses a field that the item has not.
        """
        many = {
            name: tuple(render(text, item, quote) for text in getattr(self, name))
            for name, quote in (("constraints", str), ("reads", escape), ("writes", escape), ("resources", str))
        }
        one = {name: render(getattr(self, name), item) for name in ("scope", "instructions")}
        return self.model_copy(update={**many, **one})

    def identity(self, item: Item) -> dict[str, JsonValue]:
        """Return everything in the brief that can change the answer for an item.

        Raises:
            BriefError: If it uses a field that the item has not, or code whose source can't be read.
        """
        said = self.rendered(item)
        own = [source_digest(check.function) for check in self.checks if isinstance(check, Function)]
        terms = [term for check in self.checks if isinstance(check, MustMention) for term in check.terms]
        model = self.output if isinstance(self.output, type) else None
        return {
            "scope": said.scope,
            "instructions": said.instructions,
            "constraints": list(said.constraints),
            "output": show_output(self.output),
            "validators": source_digest(model) if model and has_validators(model) else None,
            "checks": [check.model_dump(mode="json") for check in self.checks],
            "terms": [render(term, item) for term in terms],
            "functions": list(own),
            "key": item.key if own else None,  # a function sees it
            "writes": list(said.writes),  # an effect on files is not shared between equal items
            **({"sample": self.sample} if self.sample > 1 else {}),  # the first is the answer of a single one
            **({"command": self.command.model_dump(mode="json")} if self.command else {}),
            **({"part": True} if self.part else {}),  # it is told; `split` itself changes no answer
        }

    @property
    def references(self) -> tuple[str, ...]:
        """The `module:name` texts in this brief that stand for code of the user's and aren't loaded yet."""
        found = [self.output, *(check.function for check in self.checks if isinstance(check, Function))]
        return tuple(text for text in found if isinstance(text, str) and REFERENCE.fullmatch(text))


def as_briefs(given: object) -> object:
    """Return a list of briefs, also where one stands alone; anything else stays as it is."""
    return [cast("object", given)] if isinstance(given, Brief | Mapping) else given


BriefsInput = Annotated[list[Brief], BeforeValidator(as_briefs)]
"""One brief or several, as a field of a model or a parameter of a flow."""


class Answer(Numerous):
    """A valid answer, as it is stored: whatever item or job asks again gets this."""

    value: JsonValue
    """What the agent answered; it satisfies the brief's schema and checks."""
    said: JsonValue = None
    """What it said, where a pydantic model made the value of it."""
    change: Change | None = None
    """What it changed in a repository, where it worked in one."""
    fingerprint: str = ""
    """The work that it answers; a record under another name is somebody else's."""
    model: str = ""
    """Who answered."""
    served_model: str = ""
    """The model that the provider's response named; empty where it named none."""
    attempts: tuple[Attempt, ...] = ()
    """What it took, the last one being the one that succeeded."""
    joined: str = ""
    """How it was made of the answers to parts of the item, where that was too long."""


class Outcome(Numerous):
    """What one brief yielded for one item."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key."""
    status: Literal["succeeded", "failed", "skipped"]
    """How it ended; skipped means that nobody was asked."""
    value: JsonValue = None
    """The answer; empty unless it succeeded."""
    change: Change | None = None
    """What was changed in a repository, where it worked in one and succeeded."""
    error: Failure | None = None
    """Why there is no answer."""
    model: str = ""
    """Who answered."""
    served_model: str = ""
    """The model that the provider's response named; empty where it named none."""
    attempts: tuple[Attempt, ...] = ()
    """What it took, in this run or in the one that stored the answer."""
    origin: Literal["asked", "stored", "shared"] | None = None
    """Asked in this run, found in the store, or shared with an equal item of this run; empty if skipped."""
    fingerprint: str = ""
    """The identity of the work; the answer is stored under it."""
    joined: str = ""
    """How it was made of the answers to parts of the item, such as `3 parts, joined by merge_records`."""
    brief_priority: int = 0
    """The brief's priority."""
    item_priority: int = 0
    """The item's priority."""

    @property
    def failure(self) -> str:
        """Why there is no answer, as a text: the class of failure, the message, and where more of it stands.

        The error itself doesn't name a log, which is another one in each run; its last attempt does.
        """
        if self.error is None:
            return ""
        text = f"{self.error.kind}: {self.error.message}"
        last = self.attempts[-1].error if self.attempts else None
        return last if last and last.startswith(text) else text

    @property
    def spent(self) -> tuple[Attempt, ...]:
        """The attempts of this run: none unless it was asked in this run."""
        return self.attempts if self.origin == "asked" else ()

    @property
    def usage(self) -> Usage:
        """What this run spent on it."""
        spent = self.spent
        return spent[0].usage if len(spent) == 1 else sum((attempt.usage for attempt in spent), Usage())
