"""What the environment says; every setting has a good default."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings from environment variables that begin with `PREFECT_DISPATCH_`.

    Example:
        >>> Settings(model="openai/gpt-5-mini").model
        'openai/gpt-5-mini'
    """

    model_config = SettingsConfigDict(
        env_prefix="PREFECT_DISPATCH_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    model: str | None = None
    """`PREFECT_DISPATCH_MODEL`: the model that is asked where a job names none."""
