"""Arrangement of a form: labels and groups of a flow's flat parameters, and messages in their words."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.errors import BriefError, JobError, SourceError
from prefect_dispatch.models.base import Strict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

R = TypeVar("R")

_FIELD_PREFIX = re.compile(r"[a-z_]+(?:\.\w+|\[\d+\])*: ")
"""The path of a field at the beginning of a message."""
_BACKTICKED = re.compile(r"`([a-z_]+)`")


_JOB_PREFIX = re.compile(r"\b(?:limits|executor|integrator|items|briefs\[0\])\.(?=[a-z])")
"""Path prefixes of fields in a job of `dispatch`, which a flat form does not have."""
_UNENFORCEABLE = re.compile(r"^(budget|budget_usd) can't be held: ")
"""The beginning of a message about a cap that nothing bounds."""
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
    ("set max_tokens among its params", "set `max_tokens`"),
    ("set max_usd", "set `max_usd`"),
    (", or budget_requests in place of the budget", ""),
    ("give it usd_per_million", "give it one in its LLM credentials"),
    (", or set budget_tokens in its place", ""),
)
"""Replacements in messages for fields that a form doesn't have."""


@dataclass(frozen=True)
class FormGroup:
    """Group of parameters in a form, which is collapsed at first."""

    title: str
    """The label of the group."""
    description: str
    """What its fields are for."""
    fields: Mapping[str, str]
    """The labels of its fields, by parameter, in their order."""


@dataclass(frozen=True)
class FormLayout:
    """Arrangement of a flow's parameters in its form.

    A parameter in a group stays a parameter of the flow: calls in Python, job files and stored schedules may give it by
    its own name. The form shows it in the group only, which is one more parameter of the flow.
    """

    labels: Mapping[str, str] = dataclass_field(default_factory=dict[str, str])
    """The labels of fields in no group, by parameter. Without one, the parameter's name is its label."""
    groups: Mapping[str, FormGroup] = dataclass_field(default_factory=dict[str, FormGroup])
    """The groups, by the name of their parameter, in their order."""
    hidden: tuple[str, ...] = ()
    """Parameters that are in no form."""
    identity: tuple[str, ...] = ()
    """Texts that tell one job from another that has the default name, too; the first one gives a readable name."""

    @property
    def group_of(self) -> dict[str, str]:
        """The group of each parameter in one."""
        return {name: group for group, each in self.groups.items() for name in each.fields}

    def label(self, path: str) -> str:
        """Return the label of a parameter, or of a part of it, as people find it in the form.

        Example:
            >>> layout = FormLayout(groups={"limits": FormGroup("Limits", "", {"limit": "First items"})})
            >>> layout.label("limit"), layout.label("limits.limit"), layout.label("files[0]")
            ('Limits > First items', 'Limits > First items', 'files > 1')
        """
        first, *rest = re.findall(r"\w+", path)
        group = self.groups.get(first) or self.groups.get(self.group_of.get(first, ""))
        names = [*rest] if first in self.groups else [first, *rest]
        labels = self.labels if group is None else group.fields
        parts = [labels.get(name, name) if at == 0 else name for at, name in enumerate(names)]
        # Forms number the elements of a list from 1.
        shown = [str(int(part) + 1) if part.isdecimal() else part for part in parts]
        return " > ".join([*([group.title] if group else []), *shown])

    def to_labels(self, message: str) -> str:
        """Replace the names of fields by labels: that which a message begins with, and those in backticks."""
        if start := _FIELD_PREFIX.match(message):
            path = start[0].removesuffix(": ")
            message = f"{self.label(path)}: {message[start.end() :]}"
        return _BACKTICKED.sub(lambda name: f"'{self.label(name[1])}'", message)

    def flatten(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters without groups: each value of a group under its parameter.

        A form submits all fields of a group that is open, so a value that is the default counts as not given.

        Args:
            given: All parameters, validated.
            defaults: The default of each parameter.

        Raises:
            JobError: If a value is given in its group and by itself.
        """
        flat = {name: value for name, value in given.items() if name not in self.groups}
        for group in filter(given.get, self.groups):
            unchanged = type(given[group])()
            for name in self.groups[group].fields:
                # A default is as it was declared, or validated: a JSON text is then an object.
                either, value = (defaults[name], getattr(unchanged, name)), getattr(given[group], name)
                if value in either:
                    continue
                if flat.get(name, defaults[name]) not in either:
                    raise JobError(f"{name}: it is given both in the group `{group}` and by itself; leave out one.")
                flat[name] = value
        return flat

    def nest(self, parameters: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return parameters of a deployment as its form shows them: each value in its group.

        Args:
            parameters: The parameters, as JSON.
            base: Parameters that these override: a schedule replaces the whole group of its deployment.

        Example:
            >>> layout = FormLayout(groups={"limits": FormGroup("Limits", "", {"limit": "First", "budget_usd": "$"})})
            >>> layout.nest({"files": "*", "limit": 3}, {"limits": {"budget_usd": 1, "limit": 9}})
            {'files': '*', 'limits': {'budget_usd': 1, 'limit': 3}}
        """
        nested: dict[str, Any] = {}
        for name, value in parameters.items():
            if (group := self.group_of.get(name)) is None:
                nested[name] = value
            else:
                nested[group] = {**((base or {}).get(group) or {}), **(nested.get(group) or {}), name: value}
        return nested


class _Collapsed:
    """Annotation of an optional group: a tab without fields comes first, and the form begins with it."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        group = next(each for each in handler(schema)["anyOf"] if "$ref" in each)
        return {"anyOf": [{"title": "Default", "type": "null"}, group]}


class _GroupFields(Strict):
    """Base class of the models of groups."""

    model_config = ConfigDict(validate_default=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema with a plain field for an optional number, in place of tabs; empty, it is None."""
        described = super().__get_pydantic_json_schema__(schema, handler)
        for each in handler.resolve_ref_schema(described)["properties"].values():
            kinds = [kind for kind in each.get("anyOf", ()) if kind != {"type": "null"}]
            if len(kinds) == 1 and each.get("default", ...) is None:
                # Prefect admits null where a field has no default in the schema.
                del each["anyOf"], each["default"]
                each.update({name: value for name, value in kinds[0].items() if name != "title"})
        return described


def group_parameters(
    layout: FormLayout, form: Mapping[str, inspect.Parameter], descriptions: Mapping[str, str]
) -> list[inspect.Parameter]:
    """Return the parameters for the groups of a form."""
    parameters: list[inspect.Parameter] = []
    for name, group in layout.groups.items():
        fields: dict[str, Any] = {
            each: (
                form[each].annotation,
                Field(form[each].default, title=label, description=layout.to_labels(descriptions.get(each, ""))),
            )
            for each, label in group.fields.items()
        }
        model = create_model(group.title, __base__=_GroupFields, **fields)
        annotation = Annotated[model | None, _Collapsed(), Field(json_schema_extra={"title": group.title})]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return parameters


def arrange_parameter(layout: FormLayout, parameter: inspect.Parameter, description: str) -> inspect.Parameter:
    """Return a parameter with its label, and those of others in its description; or hidden from the form."""
    annotation, name = parameter.annotation, parameter.name
    if name in layout.group_of or name in layout.hidden:
        return parameter.replace(annotation=Annotated[annotation, cast("Any", SkipJsonSchema)()])
    shown = {"title": layout.labels.get(name, name), "description": layout.to_labels(description)}
    return parameter.replace(annotation=Annotated[annotation, Field(json_schema_extra=cast("Any", shown))])


def with_form_messages(step: Callable[[], R], label: Callable[[str], str] = str) -> R:
    """Run a step; its error messages about a job are converted to the field names of a form.

    Args:
        step: The step.
        label: Replaces the field names in a message by what people see in their place.

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
        raise JobError(label(text)) from None
    except (BriefError, SourceError) as error:
        raise type(error)(label(_to_form_words(str(error)))) from None
    except JobError as error:
        if type(error) is not JobError:
            raise
        raise JobError(label(_to_form_words(str(error)))) from None


def _capitalize(message: str) -> str:
    """Capitalize a message, unless it begins with the name of a field."""
    return message if _FIELD_PREFIX.match(message) else f"{message[:1].upper()}{message[1:]}"


def _to_form_words(message: str) -> str:
    """Replace the field names of a job in a message by those of a form."""
    message = _UNENFORCEABLE.sub(r"\1: it can't be held: ", _JOB_PREFIX.sub("", message))
    for job_words, form_words in _WORDS:
        message = message.replace(job_words, form_words)
    return message
