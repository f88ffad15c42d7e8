"""Executor for language models, and the adapters of their providers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.executors.llm.llm import LLM

__all__ = ["LLM"]

__getattr__ = lazy_names(__name__, {"LLM": "llm"})
