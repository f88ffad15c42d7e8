"""Every kind of executor, as a parameter takes it, and the one for a job that names none."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import AfterValidator, Field
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.executors.local import SMOLLM2, has_smollm2
from prefect_dispatch.settings import settings


def _is_executor(value: Any) -> Any:  # noqa: ANN401 -- any object that keeps the Protocol
    kind = type(cast("object", value))
    own: dict[str, object] = getattr(value, "__dict__", {})
    # Looked for, not read: a fingerprint may have to read a model file first.
    if (hasattr(kind, "fingerprint") or "fingerprint" in own) and callable(getattr(value, "answer", None)):
        return value
    msg = f"{kind.__name__} is not an executor: it needs a 'fingerprint' and a method 'answer'"
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
