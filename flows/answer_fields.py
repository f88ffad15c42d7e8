"""What an answer consists of, as an analyst says it: fields with a kind, in place of a JSON Schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from prefect_dispatch.errors import JobError
from prefect_dispatch.formats import PARTIAL_DATE
from prefect_dispatch.models import Text
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

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
LISTED = "records"
"""The field under which an answer lists its records, where it may have several."""


class AnswerField(Strict):
    """One field of an answer.

    Example:
        >>> AnswerField.model_validate("year").kind
        'text'
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
    """What it is called: letters, digits and underscores."""
    kind: Kind = "text"
    """What stands there."""
    choices: tuple[Text, ...] | None = None
    """For a text or a list of texts: the only ones that may stand there. None: any."""
    about: str = Field(default="", title="Description")
    """What is meant by it, for the model."""
    required: bool = False
    """Whether there must be something; if not, it is left empty where a text doesn't say."""

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
    def schema_of_it(self) -> dict[str, Any]:
        """Its JSON Schema; null is allowed unless it is required."""
        schema = json.loads(json.dumps(_SCHEMAS[self.kind]))
        if self.choices:
            (schema["items"] if self.kind == "list of texts" else schema)["enum"] = list(self.choices)
        told = " ".join(filter(None, [self.about, schema.pop("description", "")]))
        if self.kind != "list of texts" and not self.required:
            schema["type"] = [schema["type"], "null"]
            if "enum" in schema:
                schema["enum"].append(None)
        return {**schema, **({"description": told} if told else {})}


def schema_of_fields(fields: Sequence[AnswerField], *, several: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of answers with some fields.

    Args:
        fields: Each of them once.
        several: Whether an answer is a list of such records.

    Raises:
        JobError: If two have one name.

    Example:
        >>> schema_of_fields([AnswerField(name="year", kind="whole number", required=True)])["properties"]
        {'year': {'type': 'integer'}}
    """
    names = [field.name for field in fields]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise JobError(f"fields: {twice[0]!r} stands there twice; give each a name of its own.")
    record = {
        "type": "object",
        "properties": {field.name: field.schema_of_it for field in fields},
        "required": names,
        "additionalProperties": False,
    }
    if not several:
        return record
    listed = {LISTED: {"type": "array", "items": record}}
    return {"type": "object", "properties": listed, "required": [LISTED], "additionalProperties": False}
