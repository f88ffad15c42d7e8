"""Every kind of executor, as a parameter takes it, and the one for a job that names none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

from pydantic import AfterValidator, Field
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.executors.local import SMOLLM2, has_smollm2
from prefect_dispatch.settings import settings

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


_Plugged = Annotated[Any, AfterValidator(_is_executor)]
AnyExecutor = Annotated[LLM | SkipJsonSchema[_Plugged], Field(union_mode="left_to_right")]
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
