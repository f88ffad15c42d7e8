"""Registry of the executors: the discriminated union for parameters, and the default executor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, cast

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.local_model import SMOLLM2, has_smollm2
from prefect_dispatch.executors.python_callable import PythonCallable
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.models.base import Tabs, did_you_mean
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Executor


def is_executor(value: object) -> TypeGuard[Executor]:
    """Return whether an object implements the `Executor` protocol.

    The fingerprint is looked up but not evaluated, which `isinstance` may do: it may have to read a model file.

    Example:
        >>> is_executor(LLM(model="local/not-there-yet.gguf")), is_executor(LLM)
        (True, False)
    """
    own: dict[str, object] = getattr(value, "__dict__", {})
    has_fingerprint = hasattr(type(value), "fingerprint") or "fingerprint" in own
    return has_fingerprint and not isinstance(value, type) and callable(getattr(value, "answer", None))


def _is_executor(value: Any) -> Any:  # noqa: ANN401 -- any object that implements the protocol
    if is_executor(value):
        return value
    msg = f"{type(value).__name__} is not an executor: it needs a 'fingerprint' and a method 'answer'"
    raise ValueError(msg)


_KINDS = {"llm": LLM, "shell": Shell, "coding": CodingAgent, "python": PythonCallable}


def _kind_of(value: object) -> str:
    """Return the tag of an executor, given as an object or as a mapping: a mapping without `kind` is an `LLM`."""
    if isinstance(value, Mapping):
        return str(cast("Mapping[str, object]", value).get("kind", "llm"))
    return next((kind for kind, built_in in _KINDS.items() if isinstance(value, built_in)), "own")


def _reject_unknown_kind(value: Any) -> Any:  # noqa: ANN401 -- any input of a validator
    kind = _kind_of(value)
    if isinstance(value, Mapping) and kind not in _KINDS:
        msg = f"there is no executor of the kind {kind!r}; {did_you_mean(kind, [*_KINDS])}"
        raise ValueError(msg)
    return cast("object", value)


_AnyBuiltIn = (
    Annotated[LLM, Tag("llm")]
    | Annotated[Shell, Tag("shell")]
    | Annotated[CodingAgent, Tag("coding")]
    | Annotated[PythonCallable, Tag("python")]
)

BuiltInExecutor = Annotated[_AnyBuiltIn, Discriminator(_kind_of), BeforeValidator(_reject_unknown_kind), Tabs()]
"""A built-in executor, by its `kind`; without one it is an `LLM`."""

AnyExecutor = Annotated[
    _AnyBuiltIn | Annotated[SkipJsonSchema[Annotated[Any, AfterValidator(_is_executor)]], Tag("own")],
    Discriminator(_kind_of),
    BeforeValidator(_reject_unknown_kind),
    Tabs(),
]
"""A built-in executor, or an object of the user's own that implements the `Executor` protocol."""


def default_executor() -> LLM:
    """Return the default executor, for a job that names none.

    Raises:
        JobError: If no model is set and the small local one isn't installed.
    """
    if model := settings().model:
        return LLM(model=model)
    if has_smollm2():
        return LLM(model=SMOLLM2)
    raise JobError(
        "No model is named: set one in the job's executor or in PREFECT_DISPATCH_MODEL (such as openai/gpt-5-mini), "
        "or get a small local one with pip install 'prefect-dispatch[local]'."
    )
