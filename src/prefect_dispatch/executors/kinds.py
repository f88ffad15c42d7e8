"""Every kind of executor, as a parameter takes it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.executors.llm import LLM


def _is_executor(value: Any) -> Any:  # noqa: ANN401 -- any object that keeps the Protocol
    if callable(getattr(value, "answer", None)) and hasattr(type(value), "fingerprint") | (
        "fingerprint" in vars(value)
    ):
        return value
    msg = f"{type(value).__name__} is not an executor: it needs a 'fingerprint' and a method 'answer'"
    raise ValueError(msg)


AnyExecutor = Annotated[
    LLM | SkipJsonSchema[Annotated[Any, AfterValidator(_is_executor)]], Field(union_mode="left_to_right")
]
"""A built-in executor, or an object of the user's own that keeps the `Executor` Protocol."""
