"""Fields that forms share, and the parts of a job that are built from them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    GetPydanticSchema,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from prefect_dispatch.errors import JobError, first_problem
from prefect_dispatch.executors.block_references import (
    BLOCK_NAME,
    SLUGS,
    block_name,
    load_credentials,
    missing_key_variables,
)
from prefect_dispatch.executors.llm.cascade import Cascade
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.messages import ANSWER_LIMIT_PARAMS
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.flows.runtime.form_layout import FormGroup
from prefect_dispatch.integrators.merge_records.field_rules import FieldPath, FieldRule, Rules
from prefect_dispatch.models.base import NON_EMPTY, Strict
from prefect_dispatch.models.brief import NOT_BLANK, OutputForm, Text
from prefect_dispatch.models.checks import SourceKind
from prefect_dispatch.models.limits import Limits, Pilot
from prefect_dispatch.models.output_schema import PARTIAL_DATE
from prefect_dispatch.sources.pasted import PastedItems

if TYPE_CHECKING:
    from typing_extensions import Self

    from prefect_dispatch.blocks import DispatchProfile, LLMCredentials
    from prefect_dispatch.models.output_schema import Output


Kind = Literal["text", "whole number", "number", "yes or no", "date", "list of texts"]


_SCHEMAS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "whole number": {"type": "integer"},
    "number": {"type": "number"},
    "yes or no": {"type": "boolean"},
    "date": {
        "type": "string",
        "format": PARTIAL_DATE,
        "description": "A date of the calendar, as YYYY-MM-DD; as YYYY-MM or YYYY where no more is said.",
    },
    "list of texts": {"type": "array", "items": {"type": "string"}},
}


RECORDS_FIELD = "records"
"""The field of an answer with its list of records, if it may have several."""


class AnswerField(Strict):
    """One field of an answer.

    Example:
        >>> AnswerField.model_validate("year").kind
        'text'
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
    """The name: letters, digits and underscores."""
    kind: Kind = "text"
    """The type of the value."""
    choices: tuple[Text, ...] | None = None
    """For a text or a list of texts: the only values allowed. None: any."""
    about: str = Field(default="", title="Description")
    """The meaning of the field, for the model."""
    required: bool = False
    """Whether there must be a value; if not, it is left empty where a text doesn't have it."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: object) -> object:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.choices is None:
            return self
        if not self.choices:
            raise ValueError(f"'choices' of {self.name!r} is empty, so that none is right; name some, or leave it out")
        if twice := [choice for n, choice in enumerate(self.choices) if choice in self.choices[:n]]:
            raise ValueError(f"'choices' of {self.name!r} has {twice[0]!r} twice; remove one of them")
        if self.kind not in {"text", "list of texts"}:
            raise ValueError(f"'choices' are for texts, and {self.name!r} is a {self.kind}; remove one of them")
        return self

    @property
    def field_schema(self) -> dict[str, Any]:
        """Its JSON Schema; null is allowed unless it is required."""
        schema = json.loads(json.dumps(_SCHEMAS[self.kind]))
        if self.choices:
            (schema["items"] if self.kind == "list of texts" else schema)["enum"] = list(self.choices)
        description = " ".join(filter(None, [self.about, schema.pop("description", "")]))
        if self.kind != "list of texts" and not self.required:
            schema["type"] = [schema["type"], "null"]
            if "enum" in schema:
                schema["enum"].append(None)
        return {**schema, **({"description": description} if description else {})}


def schema_of_fields(fields: Sequence[AnswerField], *, several: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of answers with these fields.

    Args:
        fields: The fields; their names are unique.
        several: Whether an answer is a list of such records.

    Raises:
        JobError: If two fields have the same name.

    Example:
        >>> schema_of_fields([AnswerField(name="year", kind="whole number", required=True)])["properties"]
        {'year': {'type': 'integer'}}
    """
    names = [field.name for field in fields]
    require_distinct("fields", names)
    record = _object_schema({field.name: field.field_schema for field in fields})
    return _object_schema({RECORDS_FIELD: {"type": "array", "items": record}}) if several else record


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def require_distinct(field: str, names: Sequence[str]) -> None:
    """Check that no name stands twice in a field of a form.

    Raises:
        JobError: If one does.
    """
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise JobError(f"{field}: {twice!r} stands there twice; give each a name of its own.")


def _block_name(field: str) -> Any:  # noqa: ANN401 -- what `Annotated` takes
    return BeforeValidator(lambda value: None if value is None or value == "" else block_name(field, value))


def _block_picker(field: str, title: str) -> Any:  # noqa: ANN401 -- what `Annotated` takes
    # Without a type, as a form sends null if no block was picked.
    return WithJsonSchema({"title": title, "block_type_slug": SLUGS[field]})


if TYPE_CHECKING:
    CredentialsField = LLMCredentials | str | None
    ProfileField = DispatchProfile | str | None
else:
    CredentialsField = Annotated[
        str | None, _block_name("credentials"), _block_picker("credentials", "LLM Credentials")
    ]
    # A saved block, or its name; validated to the name. Only type checkers see the classes, which import Prefect.
    ProfileField = Annotated[str | None, _block_name("profile"), _block_picker("profile", "Dispatch Profile")]


Files = (
    Annotated[str, Field(title="One", min_length=1, json_schema_extra={"pattern": NOT_BLANK})]
    | Annotated[list[str], Field(title="Several", min_length=1)]
    | PastedItems
)
"""A glob, several, or pasted items."""


Fields = Annotated[Sequence[AnswerField | str], GetPydanticSchema(lambda _, handler: handler(tuple[AnswerField, ...]))]
"""The fields of an answer; a bare name is a text field of that name."""


OutputField = Annotated[
    str | Mapping[str, Any] | type[BaseModel], GetPydanticSchema(lambda _, handler: handler(OutputForm))
]
"""`text`, a JSON Schema as text or as a mapping, or a pydantic model; in a form, a JSON editor."""


RulesField = Annotated[Mapping[str, Any] | Sequence[FieldRule], GetPydanticSchema(lambda _, handler: handler(Rules))]
"""Rules for fields, or a mapping from field to rule."""


Texts = Annotated[Sequence[str], GetPydanticSchema(lambda _, handler: handler(tuple[Text, ...]))]
"""Texts, none of them empty."""


Paths = Annotated[Sequence[str], GetPydanticSchema(lambda _, handler: handler(tuple[FieldPath, ...]))]
"""Dotted paths of fields."""


_Forms = Annotated[tuple[SourceKind, ...], NON_EMPTY]


Forms = Annotated[Sequence[SourceKind], GetPydanticSchema(lambda _, handler: handler(_Forms))]
"""Kinds of sources, such as `doi`."""


Line = Annotated[str, StringConstraints(strip_whitespace=True)]
"""A text that may be empty."""


Concurrency = Annotated[int, Field(ge=1, le=1000)]


Budget = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False),
    # A budget of 0 asks nothing; in a form it is a slip.
    WithJsonSchema({"type": "number", "title": "US dollars", "exclusiveMinimum": 0}),
]


MaxTokens = Annotated[int, Field(title="Tokens", ge=1, le=1_000_000)]


Share = Annotated[float, Field(ge=0, le=1)]


First = Annotated[int, Field(title="Number", ge=1)]


def _check_budget_name(name: str) -> str:
    """Return the name of a budget.

    Raises:
        ValueError: If no block can have that name.
    """
    if name and not BLOCK_NAME.fullmatch(name):
        msg = f"{name!r} is not the name of a budget: small letters, digits and single hyphens"
        raise ValueError(msg)
    return name


SharedBudget = Annotated[Line, AfterValidator(_check_budget_name)]
"""The name of a `DispatchBudget` block; empty for none."""


def _load_profile(name: str) -> DispatchProfile:
    """Load a profile from the server."""
    from prefect_dispatch.blocks import profile  # noqa: PLC0415 -- imports Prefect

    return profile(name)


def _is_in_run() -> bool:
    """Return whether a flow run is under way, without importing Prefect."""
    context: Any = sys.modules.get("prefect.context")
    return context is not None and context.FlowRunContext.get() is not None


def executor_from_fields(
    credentials: LLMCredentials | str | None,
    model: str,
    profile: DispatchProfile | str | None,
    max_tokens: int | None = None,
) -> LLM | None:
    """Return the executor for the fields of a form; None if they name no model and no length of an answer.

    Args:
        credentials: The name of a block with a key; by default that of the profile.
        model: The model; by default that of the profile, else the default model of the credentials.
        profile: The name of a profile, whose parameters and fallbacks are used, too.
        max_tokens: The tokens of the longest answer; by default those of the profile.

    Raises:
        JobError: If there is no such block, or a key without a model.
    """
    # 1. The key and the model: of the form, else of the profile, else the default model of the key.
    saved = _load_profile(str(profile)) if profile else None
    key = str(credentials) if credentials else saved.key if saved else None
    name = model or (saved.model if saved else "")
    if not name and key:
        name = load_credentials(key).model
        if not name:
            raise JobError(
                f"model: the credentials {key!r} have no default model; name one here, such as openai/gpt-5-mini, "
                "or in the block."
            )
    if not name and max_tokens is None:
        return None
    # 2. Fallbacks and parameters of the profile.
    more: dict[str, Any] = {"fallbacks": tuple(saved.fallbacks), "params": saved.params} if saved else {}
    llm = LLM.model_validate({"model": name, "credentials": key, **more}) if name else default_executor()
    if max_tokens is None:
        return llm
    others = {each: value for each, value in llm.params.items() if each not in ANSWER_LIMIT_PARAMS}
    return llm.model_copy(update={"params": {**others, "max_tokens": max_tokens}})


def with_cheap_model(executor: LLM | None, cheap: str, output: Output) -> LLM | None:
    """Return an executor that asks a cheap model twice first, and its own where the two answers differ.

    Args:
        executor: The executor for the form's model; None: the default one.
        cheap: The cheap model; empty: none, and the executor is returned unchanged.
        output: The form of an answer.

    Raises:
        JobError: If answers are texts, of which no two are the same, or if the models don't go together.
    """
    if not cheap:
        return executor
    if output == "text":
        raise JobError(
            "cheap_model: its two answers are compared, and texts are never the same; say under `fields` what to note, "
            "or leave it out."
        )
    llm = executor or default_executor()
    try:
        return LLM.model_validate({**dict(llm), "cascade": Cascade(cheap=cheap, samples=2)})
    except ValidationError as error:
        raise JobError(f"cheap_model: {first_problem(error)[1]}.") from None


def second_executor(executor: LLM | None, model: str, field: str) -> LLM | None:
    """Return the executor for a second model, with the same key if it is of the same provider; None without a model.

    Args:
        executor: The executor for the first model.
        model: The second model.
        field: The name of its field in the form.

    Raises:
        JobError: If there is no key for it within a run: the answers of the first model would be paid for nothing.
    """
    if not model:
        return None
    other = executor.with_model(model) if executor else LLM(model=model)
    # A form that is only planned or deployed is not run in this environment, so a missing key is no error.
    if _is_in_run() and not other.credentials and not other.api_base and (missing := missing_key_variables(model)):
        reason = ""
        if executor and executor.credentials:
            reason = f"; the credentials {executor.credentials!r} are for models of the provider of {executor.model!r}"
        raise JobError(
            f"{field}: there is no key for {model!r}: the environment of this run has no {missing}{reason}. Set it "
            "there, or name a model whose key is known."
        )
    return other


def limits_group(items: str) -> FormGroup:
    """Return the group of limits in the form of a flow that asks about each of its items.

    Args:
        items: What the items are, in the plural.
    """
    return FormGroup(
        "Limits",
        f"A trial with the first {items}, a budget, and the length of an answer.",
        {
            "limit": f"First {items} only",
            "budget_usd": "Budget in US dollars",
            "budget": "Shared budget",
            "max_tokens": "Longest answer in tokens",
            "concurrency": "Concurrency",
            "min_success": "Share that must succeed",
            "pilot": "Pilot",
        },
    )


def limits_from_fields(
    profile: DispatchProfile | str | None, budget: str = "", **given: float | Pilot | None
) -> Limits:
    """Return the limits of a profile, overridden by the fields of a form.

    A form submits every default, so a field with its default value does not override the profile.

    Args:
        profile: The name of the profile. None: the default limits.
        budget: The name of a shared budget. Empty: that of the profile.
        **given: Other fields, by the names of the limits.
    """
    base = _load_profile(str(profile)).limits if profile else Limits()
    every = {**given, "budget": budget or None}
    overrides = {name: value for name, value in every.items() if value != Limits.model_fields[name].default}
    return Limits.model_validate({**base.model_dump(), **overrides})
