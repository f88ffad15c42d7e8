"""Fields that the forms of several flows have, and what becomes of them: who is asked, and how a run is bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from prefect.context import FlowRunContext
from pydantic import BaseModel, BeforeValidator, Field, GetPydanticSchema, StringConstraints, WithJsonSchema

from prefect_dispatch.blocks import DispatchProfile, LLMCredentials
from prefect_dispatch.cited_forms import SourceKind
from prefect_dispatch.credentials import SLUGS, fresh_credentials, missing_key, named
from prefect_dispatch.credentials import profile as saved_profile
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.flows.answer_fields import AnswerField
from prefect_dispatch.integrators.records.rules import FieldPath, FieldRule, Rules
from prefect_dispatch.limits import Limits
from prefect_dispatch.models import OutputForm, Text
from prefect_dispatch.strict import SOME


def _picker(field: str, title: str) -> Any:  # noqa: ANN401 -- what `Annotated` takes
    # Without a type: a form sends null for what nobody picked.
    return WithJsonSchema({"title": title, "block_type_slug": SLUGS[field]})


def _name_of(field: str) -> BeforeValidator:
    def name(value: object) -> str | None:
        nothing = value is None or (isinstance(value, str) and not value)
        return None if nothing else named(field, value)

    return BeforeValidator(name)


CredentialsField = Annotated[
    LLMCredentials | str | None, _name_of("credentials"), _picker("credentials", "LLM Credentials")
]
"""A saved LLMCredentials block, or its name; a flow gets the name."""
ProfileField = Annotated[DispatchProfile | str | None, _name_of("profile"), _picker("profile", "Dispatch Profile")]
"""A saved DispatchProfile block, or its name; a flow gets the name."""
Files = Annotated[str, Field(title="One", min_length=1)] | Annotated[list[str], Field(title="Several", min_length=1)]
"""A glob, or several."""
Fields = Annotated[Sequence[AnswerField | str], GetPydanticSchema(lambda _, handler: handler(tuple[AnswerField, ...]))]
"""What an answer consists of; a name stands for a text of that name."""
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
_Forms = Annotated[tuple[SourceKind, ...], SOME]
Forms = Annotated[Sequence[SourceKind], GetPydanticSchema(lambda _, handler: handler(_Forms))]
"""Forms of a source."""
Line = Annotated[str, StringConstraints(strip_whitespace=True)]
"""A text that may be empty."""
Concurrency = Annotated[int, Field(ge=1, le=1000)]
Budget = Annotated[float, Field(title="US dollars", ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
First = Annotated[int, Field(title="Number", ge=1)]


def asked(credentials: LLMCredentials | str | None, model: str, profile: DispatchProfile | str | None) -> LLM | None:
    """Return who is asked: the model named, else the profile's, else the credentials' default; None if none is.

    Args:
        credentials: The name of a block with a key; the profile's, if none is given.
        model: A model.
        profile: The name of a profile, whose parameters and fallbacks count, too.

    Raises:
        JobError: If there is no such block, or a key without a model.
    """
    known = saved_profile(str(profile)) if profile else None
    key = str(credentials) if credentials else known.key if known else None
    name = model or (known.model if known else "")
    if not name and key:
        name = fresh_credentials(key).model
        if not name:
            raise JobError(
                f"model: the credentials {key!r} have no default model; name one here, such as openai/gpt-5-mini, "
                "or in the block."
            )
    if not name:
        return None
    more: dict[str, Any] = {"fallbacks": tuple(known.fallbacks), "params": known.params} if known else {}
    return LLM.model_validate({"model": name, "credentials": key, **more})


def second(executor: LLM | None, model: str, field: str) -> LLM | None:
    """Return who else is asked, with the same key if it is of the same provider; None if nobody is named.

    Args:
        executor: Who is asked first.
        model: The other model.
        field: What the form calls it.

    Raises:
        JobError: If this is a run, and there is no key for it: the first one's answers would be paid for nothing.
    """
    if not model:
        return None
    other = executor.switched(model) if executor else LLM(model=model)
    # Where a form is only planned or deployed, the environment is not the one that counts.
    if FlowRunContext.get() and not other.credentials and not other.api_base and (missing := missing_key(model)):
        theirs = ""
        if executor and executor.credentials:
            theirs = f"; the credentials {executor.credentials!r} are for models of the provider of {executor.model!r}"
        raise JobError(
            f"{field}: there is no key for {model!r}: the environment of this run has no {missing}{theirs}. Set it "
            "there, or name a model whose key is known."
        )
    return other


def bounded(profile: DispatchProfile | str | None, **given: float | None) -> Limits:
    """Return the limits of a profile, changed by what a form says.

    A form fills in every default, which says nothing: what is given as its default is left to the profile.
    """
    base = saved_profile(str(profile)).limits if profile else Limits()
    said = {name: value for name, value in given.items() if value != Limits.model_fields[name].default}
    return Limits.model_validate({**base.model_dump(), **said})
