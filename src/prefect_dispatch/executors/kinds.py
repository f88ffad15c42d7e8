"""Every kind of executor, as a parameter takes it, and the one for a job that names none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, cast

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.callable import PythonCallable
from prefect_dispatch.executors.coding.executor import CodingAgent
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.executors.local import SMOLLM2, has_smollm2
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.form import Tabs
from prefect_dispatch.settings import settings
from prefect_dispatch.strict import nearest

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Executor


def is_executor(value: object) -> TypeGuard[Executor]:
    """Return whether something keeps the `Executor` Protocol.

    The fingerprint is looked for and not read, as `isinstance` may do: it may have to read a model file first.

    Example:
        >>> is_executor(LLM(model="local/not-there-yet.gguf")), is_executor(LLM)
        (True, False)
    """
    own: dict[str, object] = getattr(value, "__dict__", {})
    there = hasattr(type(value), "fingerprint") or "fingerprint" in own
    return there and not isinstance(value, type) and callable(getattr(value, "answer", None))


def _is_executor(value: Any) -> Any:  # noqa: ANN401 -- any object that keeps the Protocol
    if is_executor(value):
        return value
    msg = f"{type(value).__name__} is not an executor: it needs a 'fingerprint' and a method 'answer'"
    raise ValueError(msg)


_KINDS = {"llm": LLM, "shell": Shell, "coding": CodingAgent, "python": PythonCallable}


def _kind(value: object) -> str:
    """Return the kind of an executor in whatever form: a mapping that names none is a language model."""
    if isinstance(value, Mapping):
        return str(cast("Mapping[str, object]", value).get("kind", "llm"))
    return next((kind for kind, built_in in _KINDS.items() if isinstance(value, built_in)), "own")


def _known(value: Any) -> Any:  # noqa: ANN401 -- whatever is given
    if isinstance(value, Mapping) and _kind(cast("object", value)) not in _KINDS:
        kind = _kind(cast("object", value))
        msg = f"there is no executor of the kind {kind!r}; {nearest(kind, [*_KINDS])}"
        raise ValueError(msg)
    return cast("object", value)


BuiltInExecutor = Annotated[
    Annotated[LLM, Tag("llm")]
    | Annotated[Shell, Tag("shell")]
    | Annotated[CodingAgent, Tag("coding")]
    | Annotated[PythonCallable, Tag("python")],
    Discriminator(_kind),
    BeforeValidator(_known),
    Tabs(),
]
"""A built-in executor; `kind` tells which, and is a language model where it isn't said."""
AnyExecutor = Annotated[
    Annotated[LLM, Tag("llm")]
    | Annotated[Shell, Tag("shell")]
    | Annotated[CodingAgent, Tag("coding")]
    | Annotated[PythonCallable, Tag("python")]
    | Annotated[SkipJsonSchema[Annotated[Any, AfterValidator(_is_executor)]], Tag("own")],
    Discriminator(_kind),
    BeforeValidator(_known),
    Tabs(),
]
"""A built-in executor, or an object of the user's own that keeps the `Executor` Protocol."""


def default_executor() -> LLM:
    """Return the executor of a job that names none.

    Raises:
        JobError: If no model is set and the local one isn't installed.
    """
    if model := settings().model:
        return LLM(model=model)
    if has_smollm2():
        return LLM(model=SMOLLM2)
    raise JobError(
        "No model is named: set one in the job's executor or in PREFECT_DISPATCH_MODEL (such as openai/gpt-5-mini), "
        "or get a small local one with pip install 'prefect-dispatch[local]'."
    )
