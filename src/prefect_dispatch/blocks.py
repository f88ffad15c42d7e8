"""Prefect blocks: keys for language models, and settings that runs share, each saved on the server under a name.

Prefect loads this module wherever it looks blocks up, so it imports nothing that takes long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import available_timezones

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl, ValidationError, field_validator

from prefect_dispatch.errors import JobError, first_problem
from prefect_dispatch.executors.block_references import load_block, read_document, shell_operation
from prefect_dispatch.executors.llm.credentials_block import DOCUMENTATION, LOGOS, LLMCredentials
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.security.redaction import register_secrets

if TYPE_CHECKING:
    from prefect_dispatch.executors.llm.llm import LLM

__all__ = ["DispatchBudget", "DispatchProfile", "LLMCredentials", "block_reference", "profile"]


class DispatchProfile(Block):
    """Settings for runs, under a name: an engineer saves an executor and limits once, and every form offers them.

    Example:
        Load a stored profile and run with it:

        ```python
        from prefect_dispatch import DispatchProfile, dispatch

        profile = DispatchProfile.load("BLOCK_NAME")
        dispatch(briefs, items, executor=profile.executor, limits=profile.limits)
        ```
    """

    _block_type_name = "Dispatch Profile"
    _block_type_slug = "dispatch-profile"
    _logo_url = HttpUrl(f"{LOGOS}/webhook.png")
    _documentation_url = DOCUMENTATION
    _description = (
        "Settings for runs, under a name: model, credentials, concurrency, budget. "
        "Used by the forms of prefect-dispatch."
    )

    credentials: LLMCredentials | None = Field(
        default=None, title="Credentials", description="The key of the model's provider."
    )
    model: str = Field(
        default="", description="The model that is asked; empty for the default model of the credentials."
    )
    fallbacks: list[str] = Field(
        default_factory=list, description="Models that are asked, in this order, where the one before fails."
    )
    params: str = Field(
        default="{}",
        title="Parameters",
        description="A JSON object that goes with each call, such as temperature or max_tokens.",
        json_schema_extra={"format": "json-string"},
    )
    limits: Limits = Field(default=Limits(), description="How runs are bounded.")

    @property
    def key(self) -> str | None:
        """The name of the block with the key; None if there is none."""
        return self.credentials._block_document_name if self.credentials else None  # noqa: SLF001 -- Prefect has no public way to it

    @property
    def executor(self) -> LLM | None:
        """The executor of the profile; None if it names no model.

        Raises:
            JobError: If its credentials aren't saved, or its parameters are wrong.
        """
        from prefect_dispatch.executors.llm.llm import LLM  # noqa: PLC0415 -- a server only looks the blocks up

        model = self.model or (self.credentials.model if self.credentials else "")
        if not model:
            return None
        given = {"credentials": self.credentials, "fallbacks": self.fallbacks, "params": self.params}
        try:
            return LLM.model_validate({"model": model, **given})
        except ValidationError as error:
            where, message = first_problem(error)
            name = f" {self._block_document_name!r}" if self._block_document_name else ""
            raise JobError(f"The profile{name} can't be used: {where}: {message}.") from None


class DispatchBudget(Block):
    """US dollars per day, week or month, under a name: runs that name it in `limits.budget` never spend more together.

    Example:
        ```python
        from prefect_dispatch import DispatchBudget

        DispatchBudget(usd=100, per="month", timezone="Europe/Berlin").save("BLOCK_NAME")
        ```
    """

    _block_type_name = "Dispatch Budget"
    _block_type_slug = "dispatch-budget"
    _logo_url = HttpUrl(f"{LOGOS}/webhook.png")
    _documentation_url = DOCUMENTATION
    _description = "US dollars per day, week or month that runs of prefect-dispatch share."

    usd: float = Field(gt=0, le=200_000, title="US dollars", description="What all runs may spend in a period.")
    per: Literal["day", "week", "month"] = Field(
        default="month", title="Period", description="A week begins on Monday."
    )
    timezone: str = Field(default="UTC", title="Time zone", description="The time zone in which a day begins.")

    @field_validator("timezone")
    @classmethod
    def _is_time_zone(cls, name: str) -> str:
        if name not in available_timezones():
            msg = f"{name!r} is no time zone; an example is 'Europe/Berlin'"
            raise ValueError(msg)
        return name


def profile(name: str) -> DispatchProfile:
    """Load the profile of a name.

    Raises:
        JobError: If there is no such block, or it can't be read.
    """
    block = load_block(DispatchProfile, name, "profile")
    if block.credentials is not None:
        register_secrets(block.credentials.secrets)
    return block


def block_reference(field: str, name: str) -> dict[str, Any]:
    """Return the reference to a block for the parameters of a deployment, in the format of Prefect's block picker.

    Raises:
        JobError: If there is no such block.
    """
    kinds: dict[str, type[Block]] = {"credentials": LLMCredentials, "profile": DispatchProfile}
    block = kinds.get(field) or shell_operation()
    return {"$ref": {"block_document_id": str(read_document(block, name, field, secrets=False).id)}}
