"""Briefs and items: the instructions of a job, and its inputs."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from glob import escape
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.errors import BriefError, JobError, first_problem
from prefect_dispatch.models.base import NON_EMPTY, Strict, did_you_mean
from prefect_dispatch.models.checks import Check, Function, MustMention, source_digest
from prefect_dispatch.models.globs import Glob
from prefect_dispatch.models.imports import REFERENCE, import_reference
from prefect_dispatch.models.item import render
from prefect_dispatch.models.output_schema import Output, has_validators, normalize_output, serialize_output
from prefect_dispatch.models.test_run import TestRun

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from typing_extensions import Self

    from prefect_dispatch.models.item import Item


_Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$")]
_Code = Annotated[int, Field(ge=0, le=255)]
_Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
_Setting = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]


class Command(Strict):
    """A command, the same for every item: an item is only in the environment, or on standard input.

    Example:
        >>> Command(run='wc -w < "$ITEM_VALUE"').ok
        (0,)
        >>> Command(run=["pytest", "-q"], ok=[0, 1], retry=[75]).retry
        (75,)
    """

    run: _Line | Annotated[tuple[_Line, ...], NON_EMPTY, Field(title="Words")]
    """A line for `/bin/sh`, or a program and its arguments, which run without a shell. Never a template."""
    stdin: bool = False
    """Whether the item's value is on standard input: text as it is, else as JSON."""
    ok: Annotated[tuple[_Code, ...], NON_EMPTY] = (0,)
    """The exit codes that mean success."""
    retry: tuple[_Code, ...] = ()
    """The exit codes that mean: try again later."""
    report: tuple[_Line, ...] = ()
    """Globs of the JUnit XML files that it writes, relative to its folder; then any exit code is an answer."""
    env: dict[_Variable, _Setting] = Field(default_factory=dict)
    """More environment variables; secrets don't belong here."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The program and its arguments."""
        return ("/bin/sh", "-c", self.run) if isinstance(self.run, str) else self.run

    @field_validator("report")
    @classmethod
    def _stays_where_it_runs(cls, report: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in report:
            try:
                leads_to = Glob.parse(pattern).text
            except BriefError as error:
                raise ValueError(str(error)) from None
            if leads_to.startswith(("/", "../")):
                raise ValueError(
                    f"{pattern!r} leads out of where the command runs; write a glob from there, and have the report "
                    "written there, or into $REPORT_DIR"
                )
        return report

    @field_validator("retry")
    @classmethod
    def _never_retries_success(cls, retry: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if 0 in retry:
            raise ValueError("0 means success, and is never tried again")
        if twice := set(retry) & set(info.data.get("ok", ())):
            raise ValueError(f"{min(twice)} stands under 'ok' and under 'retry'; take it out of one of them")
        return retry


By = Literal["pages", "paragraphs", "lines", "sentences", "words"]

_UNITS: Mapping[By, re.Pattern[str]] = {
    "pages": re.compile(r"\f"),
    "paragraphs": re.compile(r"\n[^\S\n]*\n\s*"),
    "lines": re.compile(r"\n"),
    "sentences": re.compile(r"""[.!?…]["'”\u2019»)\]]*\s+|[。\uff01\uff1f]["'”\u2019」』\uff09]*\s*|\n[^\S\n]*\n\s*"""),
    "words": re.compile(r"\s+"),
}


class Split(Strict):
    """Rule for splitting an item that is too long, and for joining the answers to its parts.

    Nothing here is in the fingerprint of the work: an item that isn't too long is asked as if there were no rule, and
    its stored answer stays valid if the rule changes. A part has a fingerprint of its own, and that of the joined
    answer includes this rule.

    Example:
        >>> Split(by="sentences").split_text("One. Two! Three?", 2)
        ['One. Two! ', 'Three?']
    """

    by: By = "paragraphs"
    """The unit that is never split: `paragraphs`, `lines`, `sentences`, `words`, or `pages` (ended by a form feed)."""
    separator: Annotated[str, StringConstraints(min_length=1)] | None = None
    """A text, in place of `by`: the item is split after each occurrence, and nowhere else."""
    field: str = ""
    """Where an item is an object: the field that holds its text. The other fields go with every part."""
    join: dict[str, JsonValue] | None = None
    """An integrator without queries that joins the answers to the parts. Empty: texts and lists are concatenated."""

    @model_validator(mode="after")
    def _is_one_rule(self) -> Self:
        if self.separator is not None and "by" in self.model_fields_set:
            raise ValueError("'by' and 'separator' both say where to cut; keep one")
        return self

    @property
    def unit(self) -> str:
        """The unit that is never split, in words."""
        return f"text between {self.separator!r}" if self.separator is not None else self.by.removesuffix("s")

    def text(self, item: Item) -> str | None:
        """Return the text of an item that may be split, or None if it has none."""
        value = item.value
        if isinstance(value, dict) and self.field:
            value = value.get(self.field)
        return value if isinstance(value, str) else None

    def part(self, item: Item, text: str) -> Item:
        """Return an item with a part of its text in place of the whole text."""
        value = {**item.value, self.field: text} if isinstance(item.value, dict) else text
        return item.model_copy(update={"value": value})

    def split_text(self, text: str, most: int) -> list[str]:
        """Split a text into at most so many parts, the longest as short as possible; concatenated, they are the text.

        Example:
            >>> Split(by="words").split_text("a bb ccc", 2), Split(by="words").split_text("unbreakable", 2)
            (['a bb ', 'ccc'], ['unbreakable'])
        """
        ends = self.cut_positions(text)
        longest = max((end - start for start, end in pairwise((0, *ends))), default=0)
        # The smallest size of a part with which so many parts suffice: their number falls as the size grows.
        size = bisect_left(
            range(len(text)),
            1,
            lo=max(longest, len(text) // most),
            key=lambda size: len(_fill_parts(ends, size)) <= most + 1,
        )
        return [text[start:end] for start, end in pairwise(_fill_parts(ends, size))]

    def cut_positions(self, text: str) -> list[int]:
        """Return the positions at which the text may be split, its end included; blank units go with the one before."""
        unit = _UNITS[self.by] if self.separator is None else re.compile(re.escape(self.separator))
        ends: list[int] = []
        start, has_text = 0, False
        for end in (*(found.end() for found in unit.finditer(text)), len(text)):
            is_text = not text[start:end].isspace()
            if ends and not (is_text and has_text):
                ends[-1] = end
            elif end > start:
                ends.append(end)
            start, has_text = end, is_text or (has_text and bool(ends))
        return ends


def _fill_parts(ends: list[int], size: int) -> list[int]:
    """Return the boundaries of parts that are as long as possible, and none longer than a size that no unit exceeds.

    Args:
        ends: The positions at which the text may be split.
        size: The most characters of a part.
    """
    filled = [0]
    while ends and filled[-1] < ends[-1]:
        filled.append(ends[bisect_right(ends, filled[-1] + size) - 1])
    return filled


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
NOT_BLANK = r"\S"
"""Pattern of a text that isn't blank, for forms."""
Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1),
    WithJsonSchema({"type": "string", "minLength": 1, "pattern": NOT_BLANK}),
]

OutputForm = Annotated[
    Output,
    BeforeValidator(normalize_output),
    PlainSerializer(serialize_output, return_type=str),
    WithJsonSchema({"type": "string", "format": "json-string", "default": "text"}),
]
"""The form of an answer, in any notation; see `normalize_output`."""


class Brief(Strict):
    """The instructions for one kind of task, and the form of its answers.

    Text fields may use fields of the item, such as `{title}` (see `template`).

    Example:
        >>> Brief(name="summary", scope="One text.", instructions="Summarise it in a sentence.").output
        'text'
    """

    name: Name
    """Its name in reports, messages and files: small letters, digits and single hyphens."""
    scope: str = ""
    """What the agent gets to see and is to judge, and what it is not."""
    instructions: Text
    """The work itself."""
    constraints: tuple[Text, ...] = ()
    """Rules that the answer must satisfy, one each."""
    output: OutputForm = "text"
    """The form of the answer: `text`, a JSON Schema, or `module:Name` of a pydantic model."""
    checks: tuple[Check, ...] = ()
    """Checks that an answer must pass beyond its schema."""
    priority: int = 0
    """A higher one wins where answers of two briefs conflict."""
    reads: tuple[Text, ...] = ()
    """Globs of the files that the agent reads."""
    writes: tuple[Text, ...] = ()
    """Globs of the files that the agent writes."""
    resources: tuple[Text, ...] = ()
    """Names of things that only one agent may use at a time: a port, a database, a device."""
    samples: int = Field(default=1, ge=1, le=100)
    """Number of independent answers per item, for a `consensus`: as from briefs `name-1`, `name-2` and so on."""
    model: str = ""
    """The model, in place of the executor's model (and its fallbacks); for language models only."""
    needs: tuple[Name, ...] = ()
    """Names of briefs from whose changes, for the same item, a coding agent starts. Empty: from the job's base."""
    command: Command | None = None
    """The command that a `Shell` runs; for a coding agent, the one that must pass in its workspace afterwards."""
    split: Split | None = None
    """How an item that is too long for the model is split and asked in parts. Empty: it fails."""
    sample: SkipJsonSchema[int] = Field(default=0, ge=0, le=100)
    """Number of the sample; set when a job is prepared, 0 before that and for a single sample."""
    part: SkipJsonSchema[bool] = False
    """Whether the item is a part of one that was too long; set while a job runs."""
    start: SkipJsonSchema[str] = ""
    """The commit that work with `needs` starts from: the merge of what it needs; set while a job runs."""

    def fill_placeholders(self, item: Item) -> Brief:
        """Return the brief for one item, with its placeholders filled in.

        In `reads` and `writes` a value is escaped as by `glob.escape`: a file `[id].ts` is one file.

        Raises:
            BriefError: If it uses a field that the item doesn't have.
        """
        texts = (self.scope, self.instructions, *self.constraints, *self.reads, *self.writes, *self.resources)
        if not any("{" in text or "}" in text for text in texts):
            return self
        many = {
            name: tuple(render(text, item, quote) for text in getattr(self, name))
            for name, quote in (("constraints", str), ("reads", escape), ("writes", escape), ("resources", str))
        }
        one = {name: render(getattr(self, name), item) for name in ("scope", "instructions")}
        return self.model_copy(update={**many, **one})

    def identity(self, item: Item) -> dict[str, JsonValue]:
        """Return everything in the brief that can change the answer for an item.

        Raises:
            BriefError: If it uses a field that the item doesn't have, or code whose source can't be read.
        """
        filled = self.fill_placeholders(item)
        own = [source_digest(check.function) for check in self.checks if isinstance(check, Function)]
        terms = [term for check in self.checks if isinstance(check, MustMention) for term in check.terms]
        model = self.output if isinstance(self.output, type) else None
        return {
            "scope": filled.scope,
            "instructions": filled.instructions,
            "constraints": list(filled.constraints),
            "output": serialize_output(self.output),
            "validators": source_digest(model) if model and has_validators(model) else None,
            "checks": [check.model_dump(mode="json") for check in self.checks],
            "terms": [render(term, item) for term in terms],
            "functions": list(own),
            "key": item.key if own else None,  # a function sees it
            "writes": list(filled.writes),  # an effect on files is not shared between equal items
            **({"sample": self.sample} if self.sample > 1 else {}),  # the first equals a single sample
            **({"command": self.command.model_dump(mode="json")} if self.command else {}),
            # Without `start`, no answer can be stored: what it starts from isn't there yet.
            **({"start": self.start} if self.needs or self.start else {}),
            **({"part": True} if self.part else {}),  # the prompt mentions it; `split` itself changes no answer
        }

    @property
    def references(self) -> tuple[str, ...]:
        """The `module:name` references in this brief to code of the user's that aren't loaded yet."""
        values = [self.output, *(check.function for check in self.checks if isinstance(check, Function))]
        return tuple(text for text in values if isinstance(text, str) and REFERENCE.fullmatch(text))


def find_needed(needs: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    """Return all that each brief needs, directly and through what it needs.

    Args:
        needs: For each brief the names of those that it needs.

    Raises:
        JobError: If a name is unknown, or briefs need each other in a circle.

    Example:
        >>> sorted(find_needed({"ui": ["parser"], "parser": ["lexer"], "lexer": []})["ui"])
        ['lexer', 'parser']
    """
    for name, others in needs.items():
        for other in others:
            if other not in needs:
                raise JobError(f"needs: {name!r} needs {other!r}, which isn't there; {did_you_mean(other, [*needs])}")
    try:
        order = [*TopologicalSorter(needs).static_order()]
    except CycleError as error:  # each of its names is needed by the next one
        circle = " needs ".join(repr(name) for name in cast("list[str]", error.args[1])[::-1])
        raise JobError(f"needs: {circle}: a circle has no beginning; leave one of them out.") from None
    found: dict[str, frozenset[str]] = {}
    for name in order:
        found[name] = frozenset(needs[name]).union(*(found[other] for other in needs[name]))
    return found


def to_brief_list(given: object) -> object:
    """Return a single brief as a list of one; anything else unchanged."""
    return [cast("object", given)] if isinstance(given, Brief | Mapping) else given


BriefsInput = Annotated[list[Brief], BeforeValidator(to_brief_list)]
"""One brief or several, as a field of a model or a parameter of a flow."""

BUILT_IN_OUTPUTS = {"prefect_dispatch.test_run:TestRun": TestRun}
"""Outputs of this package that a reference can name, too: the answer of a command that writes a report."""


def resolve_user_code(brief: Brief, root: Path) -> Brief:
    """Return a brief whose `module:name` references are replaced by the objects that they name.

    Args:
        brief: The brief; one without references is returned unchanged.
        root: The folder that holds the user's code.

    Raises:
        BriefError: If a name doesn't exist there, or names an object of the wrong kind.
    """
    if not brief.references:
        return brief
    output = brief.output
    if isinstance(output, str) and REFERENCE.fullmatch(output):
        output = BUILT_IN_OUTPUTS.get(output) or import_reference(output, root)
    try:
        checks = [
            Function(function=import_reference(check.function, root))
            if isinstance(check, Function) and isinstance(check.function, str)
            else check
            for check in brief.checks
        ]
        return Brief.model_validate({**dict(brief), "output": output, "checks": checks})
    except ValidationError as error:
        raise BriefError(f"Brief {brief.name!r}: {first_problem(error)[1]}.") from None
