"""Forms of flows: a typed function that returns the parts of a job, and the fields that forms share."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar, cast, get_type_hints

from prefect.blocks.core import Block
from prefect.context import FlowRunContext
from prefect.exceptions import ParameterTypeError, SignatureMismatchError
from prefect.runtime import flow_run
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    GetPydanticSchema,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from prefect_dispatch.blocks import DispatchProfile
from prefect_dispatch.blocks import profile as saved_profile
from prefect_dispatch.errors import BriefError, JobError, SourceError
from prefect_dispatch.executors.block_references import SLUGS, block_name, load_credentials, missing_key_variables
from prefect_dispatch.executors.llm.credentials_block import LLMCredentials
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.messages import ANSWER_LIMIT_PARAMS
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.flows.runtime.flow_class import JobFlow, run_attempt
from prefect_dispatch.flows.runtime.form_layout import (
    FIELD_PREFIX,
    FormGroup,
    FormLayout,
    arrange_parameter,
    group_parameters,
)
from prefect_dispatch.integrators.merge_records.field_rules import FieldPath, FieldRule, Rules
from prefect_dispatch.models.base import NON_EMPTY, Strict, did_you_mean
from prefect_dispatch.models.brief import NOT_BLANK, OutputForm, Text
from prefect_dispatch.models.checks import SourceKind
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.output_schema import PARTIAL_DATE
from prefect_dispatch.models.report import Report
from prefect_dispatch.prefect_compat import parameter_descriptions
from prefect_dispatch.processes.ephemeral_server import use_server
from prefect_dispatch.security.escaping import count_noun
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.sources.pasted import PastedItems
from prefect_dispatch.tasks.result_store import ReportSerializer

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from prefect_dispatch.flows.runtime.prepared_job import JobSpec
P = ParamSpec("P")
R = TypeVar("R")


_JOB_PREFIX = re.compile(r"\b(?:limits|executor|integrator|items|briefs\[0\])\.(?=[a-z])")
"""Path prefixes of fields in a job of `dispatch`, which a flat form does not have."""
_FIELDS = {"glob": "files", "aliases": "decisions"}
"""The names of parts' fields in a form."""
_WORDS = (
    ("`root`", "`folder`"),
    (", or raise `max_bytes`", ""),
    (", or set `encoding` if it is text", ""),
    ("; narrow the glob.", "; narrow `files`."),
    ("executor: the agent has no key", "credentials: the agent has no key"),
    ("workspace.repo: ", "repo: "),
    ("workspace.base: ", "base: "),
    (", or set stdin: true and read it there", ""),
)
"""Replacements in messages for fields that a form doesn't have."""


REFUSAL: ContextVar[str] = ContextVar("REFUSAL", default="")
"""The reason why the parameters of this run are refused, from their validation to the first step of the flow."""
_PROBLEM = re.compile(r"^ - ([\w.-]+): (.+)$", re.MULTILINE)
"""A problem in the message of Prefect's error for invalid parameters."""


class FormFlow(JobFlow[P, R]):
    """Flow with a form: blocks are passed by name, and a JSON Schema is data.

    Attributes:
        build: Builds the parts of the job from the same parameters.
        layout: The arrangement of its form.
        defaults: The defaults of its parameters; a required one has `inspect.Parameter.empty`.
    """

    build: Callable[..., JobSpec]
    layout: FormLayout
    defaults: Mapping[str, Any]

    def with_options(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 -- Prefect's signature
        """Return the flow with other options, still a flow of this kind."""
        changed = super().with_options(*args, **kwargs)
        changed.build, changed.layout, changed.defaults = self.build, self.layout, self.defaults
        return changed

    if not TYPE_CHECKING:  # pragma: no branch -- the overloads are Prefect's

        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- Prefect's signature
            """Run the flow, with a temporary server where the settings name none."""
            with use_server():
                return super().__call__(*args, **kwargs)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the validated parameters; a `$ref` in a schema is no reference to a block.

        In the run of a deployment, invalid parameters end the run in its first step, with a message in the words of the
        form: Prefect would log its own message with a traceback, and retry.

        Raises:
            ParameterTypeError: If a parameter is wrong.
        """
        try:
            return super().validate_parameters(_replace_blocks(parameters))
        except (ParameterTypeError, SignatureMismatchError, JobError) as error:
            if FlowRunContext.get() or not flow_run.get_id():  # a call in Python
                raise
            REFUSAL.set(self._explain(error, parameters))
            return {}

    def _explain(self, error: Exception, parameters: Mapping[str, Any]) -> str:
        """Return the reason why parameters are refused, by their names."""
        if unknown := next((name for name in parameters if name not in self.defaults), None):
            return f"{unknown}: there is no such field; {did_you_mean(unknown, [*self.defaults])}"
        if isinstance(error, JobError):
            return str(error)
        if problems := _PROBLEM.findall(str(error)):
            path, message = problems[0]
            more = f" ({count_noun(len(problems) - 1, 'more problem')}.)" if problems[1:] else ""
            return f"{path}: {message.removeprefix('Value error, ').rstrip('.')}.{more}"
        return "credentials: the block, or that of the profile, doesn't exist any more; choose another one."

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as Prefect records them with the run.

        Raises:
            JobError: If a block isn't saved: only its name is recorded.
        """
        return super().serialize_parameters(_replace_blocks(parameters))


def form_flow(build: Callable[P, JobSpec], name: str, layout: FormLayout | None = None) -> FormFlow[P, Report]:
    """Return the flow that runs the job that a function builds from the parameters of a form.

    Args:
        build: Builds the parts of the job. Its parameters are those of the form, with `name`, `folder`, `out`,
            `refresh` and optionally `limit` among them, which it need not pass on.
        name: The name of the flow in Prefect.
        layout: The arrangement of the form. None: all parameters in a row.
    """
    arranged = layout or FormLayout()
    # The types are resolved here, as Prefect would look up their names in this module.
    types = get_type_hints(build, include_extras=True)
    plain = inspect.signature(build)
    given = {name: each.replace(annotation=types[name]) for name, each in plain.parameters.items()}
    descriptions = parameter_descriptions(build)
    groups = group_parameters(arranged, given, descriptions)
    parameters = [*(arrange_parameter(arranged, each, descriptions[name]) for name, each in given.items()), *groups]
    form = plain.replace(parameters=parameters, return_annotation=Report)
    defaults = {each.name: each.default for each in parameters}

    def build_spec(*args: P.args, **kwargs: P.kwargs) -> JobSpec:
        bound = form.bind(*args, **kwargs)
        bound.apply_defaults()
        fields = arranged.flatten(bound.arguments, defaults)
        spec: JobSpec = cast("Any", build)(**fields)
        return replace(
            spec,
            folder=fields["folder"],
            out=fields["out"] or None,
            limit=fields.get("limit"),
            refresh=fields["refresh"],
            name=_derive_name(arranged, fields) if fields["name"] == defaults["name"] else fields["name"],
        )

    @wraps(build)
    def run_form(*args: P.args, **kwargs: P.kwargs) -> Report:
        def step() -> Report:
            if refusal := REFUSAL.get():
                REFUSAL.set("")  # the process may run another flow
                raise JobError(refusal)
            from prefect_dispatch.flows.run_job import run_job  # noqa: PLC0415 -- a job that is refused needs none of it

            return run_job(build_spec(*args, **kwargs))

        return run_attempt(lambda: with_form_messages(step, arranged))

    cast("Any", run_form).__signature__ = form
    # A deployment finds the flow in the module of `build` by the name of its function.
    run_form.__name__ = run_form.__qualname__ = build.__name__.lstrip("_")
    # The arguments are the last section of the docstring, and Prefect reads the descriptions of fields there.
    about = [f"    {name}: {group.description}" for name, group in arranged.groups.items()]
    run_form.__doc__ = "\n".join([str(inspect.getdoc(build)), *about])
    flow: Any = FormFlow(cast("Any", run_form), name=name, result_serializer=ReportSerializer())
    flow.build, flow.layout, flow.defaults = build_spec, arranged, defaults
    return cast("FormFlow[P, Report]", flow)


def _derive_name(layout: FormLayout, fields: Mapping[str, Any]) -> str | None:
    """Return a name for a job that was given none, so that only runs of the same question are compared."""
    texts = [fields[name] for name in layout.identity if isinstance(fields[name], str | list | tuple)]
    if not texts:
        return None
    words = re.findall(r"[a-z0-9]+", str(texts[0]).lower()[:_NAME_CHARACTERS])
    return "-".join([*words, digest(texts)[:6]])


_NAME_CHARACTERS = 40
"""Characters of a question from which a name is derived."""


def with_form_messages(step: Callable[[], R], layout: FormLayout | None = None) -> R:
    """Run a step; its error messages about a job are converted to the field names of a form.

    Args:
        step: The step.
        layout: The form; in the run of a deployment, messages have its labels in place of the names of parameters.

    Raises:
        JobError: If the job is unusable.
    """
    try:
        return step()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(_FIELDS.get(str(part), str(part)) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        text = _to_form_words(f"{where}: {message}." if where else f"{_capitalize(message)}.")
        raise JobError(_to_labels(text, layout)) from None
    except (BriefError, SourceError) as error:
        raise type(error)(_to_labels(_to_form_words(str(error)), layout)) from None
    except JobError as error:
        if type(error) is not JobError:
            raise
        raise JobError(_to_labels(_to_form_words(str(error)), layout)) from None


def _to_labels(message: str, layout: FormLayout | None) -> str:
    """Replace the names of fields in a message by their labels, in the run of a deployment."""
    context = FlowRunContext.get()
    if layout is None or context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return message
    return layout.to_labels(message)


def _capitalize(message: str) -> str:
    """Capitalize a message, unless it begins with the name of a field."""
    return message if FIELD_PREFIX.match(message) else f"{message[:1].upper()}{message[1:]}"


def _to_form_words(message: str) -> str:
    """Replace the field names of a job in a message by those of a form."""
    message = _JOB_PREFIX.sub("", message)
    for job_words, form_words in _WORDS:
        message = message.replace(job_words, form_words)
    return message


def _replace_blocks(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with blocks replaced by their names, and a JSON Schema by its text."""
    changed: dict[str, Any] = {}
    for field in SLUGS:
        if isinstance(block := parameters.get(field), Block):
            try:
                changed[field] = block_name(field, block)
            except ValueError as error:
                raise JobError(f"{field}: {error}.") from None
    if isinstance(schema := parameters.get("output"), dict):
        changed["output"] = json.dumps(schema)
    return {**parameters, **changed}


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


CredentialsField = Annotated[
    LLMCredentials | str | None, _block_name("credentials"), _block_picker("credentials", "LLM Credentials")
]
"""A saved LLMCredentials block, or its name; validated to the name."""
ProfileField = Annotated[
    DispatchProfile | str | None, _block_name("profile"), _block_picker("profile", "Dispatch Profile")
]
"""A saved DispatchProfile block, or its name; validated to the name."""
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
    saved = saved_profile(str(profile)) if profile else None
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
    if (
        FlowRunContext.get()
        and not other.credentials
        and not other.api_base
        and (missing := missing_key_variables(model))
    ):
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
            "max_tokens": "Longest answer in tokens",
            "concurrency": "Concurrency",
            "min_success": "Share that must succeed",
        },
    )


def limits_from_fields(profile: DispatchProfile | str | None, **given: float | None) -> Limits:
    """Return the limits of a profile, overridden by the fields of a form.

    A form submits every default, so a field with its default value does not override the profile.
    """
    base = saved_profile(str(profile)).limits if profile else Limits()
    overrides = {name: value for name, value in given.items() if value != Limits.model_fields[name].default}
    return Limits.model_validate({**base.model_dump(), **overrides})
