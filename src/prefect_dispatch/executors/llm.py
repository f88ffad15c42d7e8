"""A language model, asked through litellm: any provider's, or one on this machine."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, field_validator

from prefect_dispatch.errors import ExecutorError, JobError, RejectedError, TerminalError
from prefect_dispatch.executors.base import Ask, Ceiling, Reply
from prefect_dispatch.executors.exchange import Exchange, exchanging
from prefect_dispatch.executors.failures import failure_of
from prefect_dispatch.executors.keys import Credentials, key_of, of_block, with_block
from prefect_dispatch.executors.local import SLOT_TOKENS, is_local, located, model_digest, serve
from prefect_dispatch.executors.model_names import is_expected_model
from prefect_dispatch.executors.params import CAPS, Params
from prefect_dispatch.executors.prompt import PROMPT, messages
from prefect_dispatch.executors.provider import (
    Price,
    is_known,
    listed_answer,
    listed_batch_price,
    listed_context,
    listed_price,
    loaded,
    most_tokens,
    provider,
    reply_of,
)
from prefect_dispatch.executors.request import LOCAL_PARAMS, request_for
from prefect_dispatch.executors.streaming import streamed
from prefect_dispatch.executors.structured import Method, StructuredOutput, method_for, require_not_refused
from prefect_dispatch.executors.wire import asked, is_plain
from prefect_dispatch.fingerprint import digest
from prefect_dispatch.models import Brief, Item, Text, Usage
from prefect_dispatch.outputs import schema_of
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED_COMPLETION_TOKENS = 500
"""A plan's guess at the length of an answer: a page of text, or a middling record."""


class LLM(Strict):
    """Asks a language model, once per ask; keys come from a block, or from the environment (`OPENAI_API_KEY`, …).

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
    credentials: Credentials | None = None
    """The name of an LLMCredentials block with the key. None: the key comes from the environment."""
    params: Params = Field(default={}, json_schema_extra={"default": "{}"})
    """Goes with each call, such as `temperature`, `max_tokens` or `seed`; one that the model refuses is an error."""
    fallbacks: tuple[Text, ...] = ()
    """Models that are asked in this order when the one before has failed, or gave no valid answer."""
    usd_per_million: Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Field(title="Prices")] | None = Field(
        default=None, title="US dollars per million tokens"
    )
    """US dollars per million tokens sent, and per million received. None: litellm's table."""
    idle_s: Annotated[float, Field(title="Idle limit", gt=0, le=86400)] | None = Field(
        default=None, title="Idle limit in seconds"
    )
    """Seconds without a new byte after which a call is ended. None: only the time limit ends it."""
    structured_output: Annotated[StructuredOutput, Field(title="Structured output")] = "auto"
    """How the form of an answer is asked for: `json_schema`, `json_object`, `tools` or `prompt`, in the words alone.
    `auto`: the strongest that the model is known to take; of an unknown one, the strongest that its server takes."""
    accept_models: tuple[Text, ...] = ()
    """Patterns (globs) of names under which the model may answer; snapshots, prefixes and paths need none."""
    strict_model: bool = False
    """Whether an answer from another model than the one that was asked is a failure, and not only a flag."""
    mode: Literal["live", "batch"] = "live"
    """`batch`: a run first hands its requests to the provider in one file, for about half the price, within a day."""
    rounds: int = Field(default=1, ge=1, le=10, title="Batches in a row")
    """How often what has failed goes into another batch, the first one counted, before it is asked live."""

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
                **({} if self.structured_output == "auto" else {"structured_output": self.structured_output}),
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
        price = self.usd_per_million if model == self.model else None
        return self._alone(model).model_copy(update={"usd_per_million": price})

    def placed(self, folder: Path) -> LLM:
        """Return this executor with the files of local models looked up from a folder, and its block on the server.

        Raises:
            JobError: If there is no such block, or it isn't for this model.
        """
        placed = [located(model, folder) for model in self.models]
        return with_block(self.model_copy(update={"model": placed[0], "fallbacks": tuple(placed[1:])}))

    async def warm_up(self) -> None:
        """Load litellm and the models of this machine; a model that can't be served is told by the first ask."""
        await loaded()
        for model in filter(is_local, self.models):
            with suppress(JobError):
                await asyncio.to_thread(serve, model)

    @property
    def tiers(self) -> tuple[LLM, ...]:
        """This model alone, and then each fallback."""
        return tuple(self._alone(model) for model in self.models) if self.fallbacks else (self,)

    @property
    def in_batch(self) -> LLM:
        """This model alone, at the price of a batch: half of what is stated, else by litellm's table."""
        stated, listed = self.usd_per_million, listed_batch_price(self.model)
        price = (stated[0] / 2, stated[1] / 2) if stated else listed and (listed[0] * 1e6, listed[1] * 1e6)
        return self._alone(self.model).model_copy(update={"usd_per_million": price, "mode": "live"})

    @property
    def name(self) -> str:
        """Whose pace its calls share: the model, and its address where one is set."""
        return f"{self.model} at {self.api_base.rstrip('/')}" if self.api_base else self.model

    async def answer(self, ask: Ask) -> Reply:
        """Ask the model once; its `tiers` know the fallbacks.

        Raises:
            FormRefusedError: If the server refuses how the form of the answer is asked for: to be asked again.
            ExecutorError: If it fails.
        """
        litellm = await loaded()
        exchange = Exchange(self.model)
        schema = schema_of(ask.brief.output)
        method = self.method(litellm, schema)
        try:
            request = {**request_for(litellm, ask, self.model, self.params, method), **await self._target()}
            response = await self._response(litellm, request, exchange)
            reply = reply_of(response, self.model, self._price(), exchange.served_model)
        except JobError as error:
            raise TerminalError(str(error), kind="local_model", usage=Usage()) from None
        except Exception as error:  # noqa: BLE001 -- a provider's client may raise anything; its words need scrubbing
            failure = error if isinstance(error, ExecutorError) else failure_of(exchange.failure or error, self.model)
            if schema is not None:
                is_object = schema.get("type") == "object"
                how = (self.structured_output, self.model, self.api_base)
                require_not_refused(failure, method, *how, is_object=is_object)
            raise of_block(failure, self.credentials) from None
        self.require_expected(reply)
        return reply

    def method(self, litellm: Any, schema: dict[str, Any] | None, *, tries: bool = True) -> Method:  # noqa: ANN401 -- a module
        """Return how the form of an answer is asked for, by what is known of the model by now; see `method_for`."""
        if schema is None:
            return "prompt"
        return method_for(litellm, self.structured_output, self.model, self.api_base, schema, tries=tries)

    def is_expected(self, asked: str, served: str) -> bool:
        """Return whether a model that a response names is the one that was asked, or is accepted in its place."""
        return is_local(asked) or is_expected_model(asked, served, self.accept_models)

    def require_expected(self, reply: Reply) -> None:
        """Check that a reply comes from the model that was asked, where `strict_model` is set.

        Raises:
            RejectedError: If it doesn't; its usage is that of the reply.
        """
        if self.strict_model and not self.is_expected(self.model, reply.served_model):
            raise RejectedError(
                f"{self.model!r} was asked, and the response names {reply.served_model!r} (strict_model)",
                kind="other_model",
                usage=reply.usage,
            )

    async def _response(self, litellm: Any, request: dict[str, Any], exchange: Exchange) -> Any:  # noqa: ANN401 -- a module, and its ModelResponse
        if self.idle_s is None and is_plain(litellm, request):
            return await asked(litellm, request, exchange)
        with exchanging(exchange):
            if self.idle_s is not None:
                return await streamed(litellm, self.model, request, self.idle_s)
            return await litellm.acompletion(**request)

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
        caps = [self.params.get(name) for name in CAPS]
        return min([EXPECTED_COMPLETION_TOKENS, *(cap for cap in caps if isinstance(cap, int))])

    def context_tokens(self) -> int | None:
        """Return what all of the models can take in, by litellm's table; None if one of them is unknown."""
        rooms = [SLOT_TOKENS if is_local(model) else listed_context(model) for model in self.models]
        known = [room for room in rooms if room is not None]
        return min(known) if len(known) == len(rooms) else None

    def price(self) -> Price | None:
        """Return US dollars per token sent and per token received, by the dearest model; None if one is unknown."""
        if self.mode == "batch":
            return self.in_batch.price()
        prices = [tier._price() or listed_price(tier.model) for tier in self.tiers]  # noqa: SLF001 -- its own kind
        known = [price for price in prices if price is not None]
        return (max(sent for sent, _ in known), max(got for _, got in known)) if len(known) == len(prices) else None

    def ceiling(self, ask: Ask) -> Ceiling:
        """Return the most that a call can take: by the prompt as it is, the longest answer, and the dearest price."""
        sent = most_tokens(self.model, messages(ask, schema_in_prompt=True))
        got = self._longest_answer()
        price = self._price() or listed_price(self.model, sent)
        cost = None if price is None or (got is None and price[1]) else sent * price[0] + (got or 0) * price[1]
        return Ceiling(prompt_tokens=sent, completion_tokens=got, cost_usd=cost)

    def _longest_answer(self) -> int | None:
        local = is_local(self.model)
        params = {**(LOCAL_PARAMS if local else {}), **self.params}
        caps = [cap for name in CAPS if isinstance(cap := params.get(name), int) and cap > 0]
        return max(caps) if caps else SLOT_TOKENS if local else listed_answer(self.model)

    def _alone(self, model: str) -> LLM:
        same_provider = model.partition("/")[0] == self.model.partition("/")[0]
        elsewhere = {} if same_provider else {"api_base": None, "credentials": None}
        return self.model_copy(update={"model": model, "fallbacks": (), **elsewhere})

    async def _target(self) -> dict[str, Any]:
        if is_local(self.model):
            served = await asyncio.to_thread(serve, self.model)
            return {"model": f"openai/{self.model}", "api_base": served.api_base, "api_key": served.api_key}
        return {"model": self.model, "api_base": self.api_base, **await key_of(self.credentials)}

    def _price(self) -> Price | None:
        """Return the price per token that is known before the call; None leaves it to litellm."""
        if is_local(self.model):
            return 0.0, 0.0
        if self.usd_per_million is not None:
            return self.usd_per_million[0] / 1e6, self.usd_per_million[1] / 1e6
        return None
