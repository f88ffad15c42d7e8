"""A language model, asked through litellm: any provider's, or one on this machine."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, NonNegativeFloat, field_validator

from prefect_dispatch.errors import ExecutorError, JobError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.failures import failure_of
from prefect_dispatch.executors.local import SLOT_TOKENS, is_local, located, model_digest, serve
from prefect_dispatch.executors.params import Params
from prefect_dispatch.executors.prompt import PROMPT, messages, response_format
from prefect_dispatch.executors.provider import Price, is_known, listed_context, listed_price, provider, reply_of
from prefect_dispatch.fingerprint import digest
from prefect_dispatch.models import Brief, Item, Text, Usage
from prefect_dispatch.outputs import schema_of
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED_COMPLETION_TOKENS = 500
"""A plan's guess at the length of an answer: a page of text, or a middling record."""

LOCAL_PARAMS: dict[str, JsonValue] = {"temperature": 0, "repeat_penalty": 1.15, "max_tokens": 512}
"""What a model on this machine is asked with unless `params` say otherwise: small ones ramble and repeat."""


class LLM(Strict):
    """Asks a language model, once per ask; keys come from the environment (`OPENAI_API_KEY`, …).

    Example:
        >>> LLM(model="openai/gpt-5-mini", params={"seed": 1}).params
        {'seed': 1}
    """

    kind: Literal["llm"] = "llm"
    """Tells the executors apart."""
    model: Text
    """Any model that litellm knows, such as `openai/gpt-5-mini`; `local/smollm2`, or `local/<path>.gguf`."""
    api_base: Annotated[str, Field(title="Address")] | None = Field(default=None, title="API base")
    """The address of a server of one's own; it serves the fallbacks of the same provider too."""
    params: Params = Field(default={}, json_schema_extra={"default": "{}"})
    """Goes with each call, such as `temperature`, `max_tokens` or `seed`; one that the model refuses is an error."""
    fallbacks: tuple[Text, ...] = ()
    """Models that are asked in this order, within the same call, when the one before has failed."""
    usd_per_million: Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Field(title="Prices")] | None = Field(
        default=None, title="US dollars per million tokens"
    )
    """US dollars per million tokens sent, and per million received. None: litellm's table."""

    @field_validator("api_base")
    @classmethod
    def _holds_no_secret(cls, api_base: str | None) -> str | None:
        if api_base is not None and ("@" in api_base or "?" in api_base):
            msg = "must be a plain address; keys and passwords live in the environment"
            raise ValueError(msg)
        return api_base

    @property
    def models(self) -> tuple[str, ...]:
        """The models in the order in which they are asked."""
        return (self.model, *self.fallbacks)

    @property
    def fingerprint(self) -> str:
        """Everything that can change an answer; no key and no price.

        Raises:
            JobError: If a local model has no file.
        """
        return digest(
            {
                "prompt": PROMPT,
                "models": [f"local:{model_digest(model)}" if is_local(model) else model for model in self.models],
                "api_base": self.api_base,
                "params": self.params,
                "local": LOCAL_PARAMS if any(map(is_local, self.models)) else None,
            }
        )

    @property
    def repeats(self) -> bool:
        """Whether it gives the same answer each time: at temperature 0."""
        assumed = LOCAL_PARAMS["temperature"] if is_local(self.model) else None
        return self.params.get("temperature", assumed) == 0

    def switched(self, model: str) -> LLM:
        """Return this executor asking another model and, so that it is its answer, no fallback.

        The address goes with it to a model of the same provider; prices never do.
        """
        if model == self.model and not self.fallbacks:
            return self
        same = model.partition("/")[0] == self.model.partition("/")[0]
        return self.model_copy(
            update={
                "model": model,
                "fallbacks": (),
                "api_base": self.api_base if same else None,
                "usd_per_million": self.usd_per_million if model == self.model else None,
            }
        )

    def placed(self, folder: Path) -> LLM:
        """Return this executor with the files of local models looked up from a folder."""
        placed = [located(model, folder) for model in self.models]
        return self.model_copy(update={"model": placed[0], "fallbacks": tuple(placed[1:])})

    async def warm_up(self) -> None:
        """Load litellm and the models of this machine; a model that can't be served is told by the first ask."""
        await asyncio.to_thread(provider)
        for model in filter(is_local, self.models):
            with suppress(JobError):
                await asyncio.to_thread(serve, model)

    async def answer(self, ask: Ask) -> Reply:
        """Ask the model once, and the fallbacks in turn where it fails.

        Raises:
            ExecutorError: If all of them fail: the failure that leaves most hope, with the usage of all.
        """
        litellm = await asyncio.to_thread(provider)
        spent = Usage()
        failures: list[ExecutorError] = []
        for model in self.models:
            try:
                reply = await self._call(litellm, model, ask)
            except ExecutorError as error:  # noqa: PERF203 -- a call takes far longer than a try
                failures.append(error)
                spent += error.usage or Usage()
            else:
                return reply.model_copy(update={"usage": spent + reply.usage})
        hope = min(failures, key=_hopelessness)
        hope.usage = spent
        raise hope

    def require_known(self) -> None:
        """Check that litellm knows the provider of every model.

        Raises:
            JobError: If it doesn't; the message says how models are named.
        """
        for model in self.models:
            if not is_known(model):
                raise JobError(f"Model {model!r} is unknown to litellm: name it as provider/model.")

    def count_tokens(self, brief: Brief, item: Item) -> int:
        """Return about how many tokens an ask sends; nothing is sent for it.

        Raises:
            BriefError: If the brief uses a field that the item has not.
        """
        chat = messages(Ask(brief=brief.rendered(item), item=item), schema_in_prompt=True)
        return int(provider().token_counter(model=self.model, messages=chat))

    def expected_completion_tokens(self, brief: Brief) -> int:  # noqa: ARG002 -- a better guess may use it
        """Return the assumed length of an answer: 500 tokens, or the cap in `params` if that is less."""
        caps = [self.params.get(name) for name in ("max_tokens", "max_completion_tokens")]
        return min([EXPECTED_COMPLETION_TOKENS, *(cap for cap in caps if isinstance(cap, int))])

    def context_tokens(self) -> int | None:
        """Return what all of the models can take in, by litellm's table; None if one of them is unknown."""
        rooms = [SLOT_TOKENS if is_local(model) else listed_context(model) for model in self.models]
        known = [room for room in rooms if room is not None]
        return min(known) if len(known) == len(rooms) else None

    def price(self) -> Price | None:
        """Return US dollars per token sent and per token received, by the dearest model; None if one is unknown."""
        prices = [self._price(model) or listed_price(model) for model in self.models]
        known = [price for price in prices if price is not None]
        return (max(sent for sent, _ in known), max(got for _, got in known)) if len(known) == len(prices) else None

    async def _call(self, litellm: Any, model: str, ask: Ask) -> Reply:  # noqa: ANN401 -- a module
        schema, local = schema_of(ask.brief.output), is_local(model)
        enforced = schema is not None and (local or bool(litellm.supports_response_schema(model=model)))
        request: dict[str, Any] = {
            **(LOCAL_PARAMS if local else {}),
            **self.params,
            # llama.cpp keeps to the schema, but doesn't show it to the model.
            "messages": messages(ask, schema_in_prompt=local or not enforced),
            "num_retries": 0,
            "max_retries": 0,
        }
        if isinstance(seed := request.get("seed"), int) and ask.brief.sample > 1:
            request["seed"] = seed + ask.brief.sample - 1  # with one seed, all samples would be one answer
        if enforced and schema is not None:
            request["response_format"] = response_format(schema)
        try:
            response = await litellm.acompletion(**request, **await self._target(model))
        except JobError as error:
            raise TerminalError(str(error), kind="local_model", usage=Usage()) from None
        except Exception as error:  # noqa: BLE001 -- a provider's client may raise anything; its words need scrubbing
            raise failure_of(error, model) from None
        return reply_of(response, model, self._price(model))

    async def _target(self, model: str) -> dict[str, Any]:
        if is_local(model):
            served = await asyncio.to_thread(serve, model)
            return {"model": f"openai/{model}", "api_base": served.api_base, "api_key": served.api_key}
        same_provider = model.partition("/")[0] == self.model.partition("/")[0]
        return {"model": model, "api_base": self.api_base if same_provider else None}

    def _price(self, model: str) -> Price | None:
        """Return the price per token that is known before the call; None leaves it to litellm."""
        if is_local(model):
            return 0.0, 0.0
        if self.usd_per_million is not None:
            return self.usd_per_million[0] / 1e6, self.usd_per_million[1] / 1e6
        return None


def _hopelessness(error: ExecutorError) -> int:
    """Rank by what may still come of it: a retry, other items, none."""
    order = (TransientError, RejectedError, TerminalError)
    return next((rank for rank, kind in enumerate(order) if isinstance(error, kind)), 1)
