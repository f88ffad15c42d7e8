"""Executor for language models through litellm: any provider's, or one on this machine."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import aclosing, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator
from pydantic_core import PydanticCustomError

from prefect_dispatch.errors import (
    ExecutorError,
    FormRefusedError,
    JobError,
    RejectedError,
    TerminalError,
    TransientError,
)
from prefect_dispatch.executors.base import Ask, BaseExecutor, CostBound, Reply, require_no_command
from prefect_dispatch.executors.block_references import (
    Credentials,
    address_and_price,
    load_key,
    missing_key_variables,
    name_block_in_failure,
)
from prefect_dispatch.executors.llm.cascade import (
    Cascade,
    contradiction_of,
    from_pair,
    own_model_problem,
)
from prefect_dispatch.executors.llm.direct_calls import post_chat_completion, supports_direct_http
from prefect_dispatch.executors.llm.discounts import (
    FLEX,
    FLEX_PROVIDER,
    PREFIX_STEP,
    PRIORITY,
    halve,
    listed_prefix_cache,
    listed_tier_price,
    mark_for_cache,
    read_tier,
)
from prefect_dispatch.executors.llm.hosted_providers import ask_provider, find_route
from prefect_dispatch.executors.llm.http_exchange import Exchange, use_exchange
from prefect_dispatch.executors.llm.litellm_adapter import (
    Price,
    count_prompt_tokens,
    has_known_provider,
    has_unknown_provider,
    list_field,
    listed_batch_price,
    listed_price,
    listed_search_price,
    listed_tokens,
    load_litellm_in_thread,
    max_prompt_tokens,
    parse_response,
    supports_web_search,
)
from prefect_dispatch.executors.llm.local_model import SLOT_TOKENS, model_digest, resolve_model_path, serve
from prefect_dispatch.executors.llm.messages import (
    ANSWER_LIMIT_PARAMS,
    LOCAL_PARAMS,
    MAX_REMEMBERED,
    METHOD_WORDS,
    METHODS,
    OBJECT_METHODS,
    PROMPT,
    REFUSAL_KINDS,
    Address,
    Method,
    Params,
    StructuredOutput,
    build_messages,
    build_request,
    is_deterministic,
    is_expected_model,
    is_local,
    known_methods,
    listed_method,
    usable_methods,
)
from prefect_dispatch.executors.llm.provider_errors import classify_error, is_read_timeout
from prefect_dispatch.executors.llm.telemetry import note_messages
from prefect_dispatch.models.base import NoneFirst, Strict
from prefect_dispatch.models.brief import Brief, Text
from prefect_dispatch.models.item import Item, placeholders
from prefect_dispatch.models.outcome import LIVE, Usage
from prefect_dispatch.models.output_schema import schema_of
from prefect_dispatch.serialization.json_text import digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from pydantic import JsonValue
    from typing_extensions import Self


EXPECTED_COMPLETION_TOKENS = 500
"""A plan's estimate of the length of an answer: a page of text, or a record of medium size."""


class LLM(BaseExecutor, Strict):
    """Calls a language model once per ask; keys come from a block, or from the environment (`OPENAI_API_KEY`, …).

    Example:
        >>> LLM(model="openai/gpt-5-mini", params={"seed": 1}).params
        {'seed': 1}
    """

    kind: Literal["llm"] = "llm"
    """Kind of the executor."""
    model: Text
    """Any model that litellm knows, such as `openai/gpt-5-mini`; `local/smollm2`, or `local/<path>.gguf`."""
    api_base: Address | None = Field(default=None, title="API base")
    """The address of your own server; it serves the fallbacks of the same provider, too."""
    credentials: Credentials | None = None
    """The name of an LLMCredentials block with the key. None: the key comes from the environment."""
    params: Params = Field(default={}, json_schema_extra={"default": "{}"})
    """Parameters of each call, such as `temperature`, `max_tokens` or `seed`; a refused one is an error."""
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
    """How the form of an answer is requested: `json_schema`, `json_object`, `tools`, or `prompt`: by the prompt alone.
    `auto`: the strongest that the model is known to support; for an unknown one, the strongest its server takes."""
    accept_models: tuple[Text, ...] = ()
    """Patterns (globs) of names under which the model may answer; snapshots, prefixes and paths need none."""
    strict_model: bool = False
    """Whether an answer from another model than the one that was asked is a failure, and not only a flag."""
    web_search: bool = Field(default=False, title="Web search")
    """Whether the model may search the web through its provider; options are `web_search_options` in `params`."""
    mode: Literal["live", "flex", "batch"] = "live"
    """`flex`: each call is sent in OpenAI's flex tier, for about half the price; it may take 15 minutes, or be refused
    while the tier has no capacity. `batch`: a run first sends its requests to the provider in one file, for about half
    the price, within a day."""
    rounds: int = Field(default=1, ge=1, le=10, title="Batches in a row")
    """Number of batches, the first included, for requests that fail, before they are sent live."""
    cascade: Annotated[Cascade | None, NoneFirst()] = Field(default=None, title="Cascade")
    """A cheap model that is asked first; `model` is then asked only where that one's answers don't suffice."""

    @model_validator(mode="before")
    @classmethod
    def _takes_a_pair(cls, data: object) -> object:
        return from_pair(data)

    @model_validator(mode="after")
    def _fits_its_cascade(self) -> Self:
        problem = self.cascade and contradiction_of(
            self.cascade,
            others=(self.model, *self.fallbacks),
            mode=self.mode,
            searches=self.search_options is not None,
            params=self.cheap_tier(self.cascade).params,
        )
        if problem:
            raise PydanticCustomError("cascade", "{problem}", {"problem": problem})
        cheap_params = self.cascade.params if self.cascade else None
        if self.mode == FLEX and any(map(_named_tier, (self.params, cheap_params or {}))):
            raise PydanticCustomError(
                "mode", "mode: flex is a service tier, and params.service_tier names one, too; leave one of them out"
            )
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The models in the order in which they are asked."""
        return (*((self.cascade.cheap,) if self.cascade else ()), self.model, *self.fallbacks)

    @property
    def without_cascade(self) -> LLM:
        """This executor with the strong model and its fallbacks alone."""
        return self.model_copy(update={"cascade": None})

    @property
    def fingerprint(self) -> str:
        """Identity of everything that can change an answer; no key and no price.

        Raises:
            JobError: If a local model has no file.
        """
        cheap = self.cheap_tier(self.cascade) if self.cascade else None
        return digest(
            {
                "prompt": PROMPT,
                "models": [f"local:{model_digest(model)}" if is_local(model) else model for model in self.models],
                "api_base": self.api_base,
                "params": self.params,
                "local": LOCAL_PARAMS if any(map(is_local, self.models)) else None,
                **({} if self.structured_output == "auto" else {"structured_output": self.structured_output}),
                **({"web_search": True} if self.web_search else {}),
                **({"cascade": self.cascade.identity(cheap.api_base, cheap.params)} if cheap and self.cascade else {}),
            }
        )

    @property
    def search_options(self) -> dict[str, JsonValue] | None:
        """The options of the web search; None if the model doesn't search."""
        options = self.params.get("web_search_options")
        return options if isinstance(options, dict) else {} if self.web_search else None

    @property
    def is_deterministic(self) -> bool:
        """Whether it is deterministic: at temperature 0."""
        return is_deterministic(self.model, self.params)

    def with_model(self, model: str) -> LLM:
        """Return this executor with another model, and without fallbacks, so that any answer is from that model.

        The address is kept for a model of the same provider; prices never are.
        """
        if model == self.model and not self.fallbacks and not self.cascade:
            return self
        price = self.usd_per_million if model == self.model else None
        return self._with_single_model(model).model_copy(update={"usd_per_million": price})

    def resolve_paths(self, folder: Path) -> LLM:
        """Return this executor with absolute paths of local models, and with the address and price of its block.

        Args:
            folder: The folder that relative paths start from.

        Raises:
            JobError: If there is no such block, or it isn't for this model.
        """
        first, *others = [
            resolve_model_path(model, folder) if is_local(model) else model for model in (self.model, *self.fallbacks)
        ]
        resolved = self.model_copy(update={"model": first, "fallbacks": tuple(others)}).with_block()
        if (asking := resolved.cascade) is None:
            return resolved
        if is_local(asking.cheap):
            asking = asking.model_copy(update={"cheap": resolve_model_path(asking.cheap, folder)})
        cheap = resolved.cheap_tier(asking).with_block("executor.cascade")
        # A key that it shares with the strong model comes without a price: that is the strong one's.
        price = cheap.usd_per_million if asking.credentials else asking.usd_per_million
        its = {"api_base": cheap.api_base, "credentials": cheap.credentials, "usd_per_million": price}
        return resolved.model_copy(update={"cascade": asking.model_copy(update=its)})

    def with_block(self, where: str = "executor") -> LLM:
        """Return this executor with the address and the price of its block; the key stays in the block.

        Args:
            where: Its path in the job, for messages.

        Raises:
            JobError: If there is no such block, or it isn't for the model.
        """
        if self.credentials is None or is_local(self.model):
            return self
        api_base, price = address_and_price(self.credentials, self.model, where)
        stated = self.usd_per_million or (None if self.fallbacks else price)
        return self.model_copy(update={"api_base": self.api_base or api_base, "usd_per_million": stated})

    async def warm_up(self) -> None:
        """Load litellm and local models; a model that can't be served is reported by the first call."""
        await load_litellm_in_thread()
        for model in filter(is_local, self.models):
            with suppress(JobError):
                await asyncio.to_thread(serve, model)

    @property
    def fallback_chain(self) -> tuple[LLM, ...]:
        """The fallback chain: the cheap model of a cascade, this model alone, then each fallback."""
        first = (self.cheap_tier(self.cascade),) if self.cascade else ()
        alone = (self._with_single_model(model) for model in (self.model, *self.fallbacks))
        return (*first, *alone) if first or self.fallbacks else (self,)

    @property
    def batch_variant(self) -> LLM:
        """This model alone, with the price of a batch: half of the stated price, else by litellm's table."""
        stated, listed = self.usd_per_million, listed_batch_price(self.model)
        price = halve(stated) if stated else listed and (listed[0] * 1e6, listed[1] * 1e6)
        return self._with_single_model(self.model).model_copy(update={"usd_per_million": price, "mode": "live"})

    @property
    def name(self) -> str:
        """The name of its rate limiter: the model, the flex tier, and the address where one is set."""
        model = f"{self.model} in flex" if self.mode == FLEX else self.model  # that has no capacity; other calls pass
        return f"{model} at {self.api_base.rstrip('/')}" if self.api_base else model

    @property
    def model_name(self) -> str:
        """The model, without the address."""
        return self.model

    @property
    def price_tier(self) -> str:
        """The price tier in which a call is sent."""
        return FLEX if self.mode == FLEX else read_tier(_named_tier(self.params))

    async def answer(self, ask: Ask) -> Reply:
        """Call the model once; the fallbacks are in `fallback_chain`.

        Raises:
            FormRefusedError: If the server refuses the method of structured output: the call is to be repeated.
            ExecutorError: If it fails.
        """
        litellm = await load_litellm_in_thread()
        exchange = Exchange(self.model)
        schema = schema_of(ask.brief.output)
        method = self.output_method(litellm, schema)
        try:
            search = self.search_options
            params = self.params if search is None else {**self.params, "web_search_options": search}
            if self.mode == FLEX:
                params = {**params, "service_tier": FLEX}
            request = {**build_request(litellm, ask, self.model, params, method), **await self._call_target()}
            if self._marks_prefix(ask):
                request["messages"][0] = mark_for_cache(request["messages"][0])
            note_messages(request["messages"])
            response = await self._request_response(litellm, request, exchange)
            tier = read_tier(getattr(response, "service_tier", None))
            reply = parse_response(response, self.model, self._price(tier), exchange.served_model, search)
            if tier != self.price_tier:
                reply = reply.model_copy(update={"tier": tier})
        except JobError as error:
            raise TerminalError(str(error), kind="local_model", usage=Usage()) from None
        except Exception as error:  # noqa: BLE001 -- a provider's client may raise anything; its message is redacted
            failure = (
                error if isinstance(error, ExecutorError) else classify_error(exchange.failure or error, self.model)
            )
            if schema is not None:
                self.raise_if_form_refused(failure, method, schema)
            raise name_block_in_failure(self._explain_missing_key(failure), self.credentials) from None
        self.require_expected(reply)
        return reply

    def _explain_missing_key(self, failure: ExecutorError) -> ExecutorError:
        """Return a failure for which nothing was sent with the variable that is not set, if that is the reason."""
        is_unsent = failure.kind == "credentials" and failure.usage is not None and not failure.usage.requests
        missing = missing_key_variables(self.model) if is_unsent and not self.credentials else None
        if not missing:
            return failure
        return TerminalError(
            f"there is no key for {self.model!r}: set {missing} in the environment of the run, or name an "
            "LLMCredentials block as 'credentials' of the executor.",
            kind="credentials",
            usage=failure.usage,
        )

    def output_method(self, litellm: Any, schema: dict[str, Any] | None, *, tries: bool = True) -> Method:  # noqa: ANN401 -- a module
        """Return the method of structured output for a call, by what is known of the model so far.

        Args:
            litellm: The module.
            schema: The JSON Schema of the answer; None for a text.
            tries: Whether a method may be tried that may be unsupported; not in a batch, where a refusal would be
                final.
        """
        if schema is None:
            return "prompt"
        is_object = schema.get("type") == "object"
        if self.structured_output != "auto":
            return self.structured_output if is_object or self.structured_output not in OBJECT_METHODS else "prompt"
        if is_local(self.model):
            return "json_schema"
        default: Method = "json_schema" if tries else "prompt"
        strongest = known_methods.get(self._method_key) or listed_method(litellm, self.model) or default
        return usable_methods(strongest, is_object=is_object)[0]

    @property
    def _method_key(self) -> tuple[str, ...]:
        """The key of the model's known method: its name and address, from the environment where none is set."""
        if self.api_base:
            return self.model, self.api_base
        provider = self.model.partition("/")[0].upper()
        return self.model, *(os.environ.get(f"{provider}_{name}", "") for name in ("API_BASE", "BASE_URL"))

    def raise_if_form_refused(self, error: ExecutorError, used: Method, schema: dict[str, Any]) -> None:
        """Go on to the next method of structured output if the server has refused one, and any may be used.

        Args:
            error: The failure of the call.
            used: The method that was used.
            schema: The JSON Schema of the answer.

        Raises:
            FormRefusedError: If the call is to be repeated with another method.
        """
        key, is_object = self._method_key, schema.get("type") == "object"
        if self.structured_output != "auto" or is_local(self.model) or error.kind not in REFUSAL_KINDS:
            return
        if not re.search(METHOD_WORDS[used], str(error), re.IGNORECASE):
            return
        if used == "prompt":  # nothing was requested, so the reason is another one: forget what was concluded from it
            known_methods.pop(key, None)
            return
        # Calls in flight may have led to a weaker method already: never go back to a stronger one.
        _, weaker, *_ = usable_methods(used, is_object=is_object)
        if METHODS.index(weaker) > METHODS.index(known_methods.get(key, used)):
            if len(known_methods) >= MAX_REMEMBERED:
                known_methods.clear()
            known_methods[key] = weaker
        raise FormRefusedError(str(error), usage=error.usage) from None

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

    async def _request_response(self, litellm: Any, request: dict[str, Any], exchange: Exchange) -> Any:  # noqa: ANN401 -- a module, and its ModelResponse
        if self.idle_s is None and supports_direct_http(litellm, request):
            return await post_chat_completion(litellm, request, exchange)
        if self.idle_s is None and (route := await find_route(litellm, request)):
            return await ask_provider(litellm, route, request, exchange)
        with use_exchange(exchange):
            if self.idle_s is not None:
                return await _complete_streaming(litellm, self.model, request, self.idle_s)
            return await litellm.acompletion(**request)

    def require_providers(self) -> None:
        """Check that no model has a provider that litellm certainly doesn't know; litellm isn't imported for that.

        Raises:
            JobError: If one has.
        """
        for model in filter(has_unknown_provider, self.models):
            raise _unknown_model(model)

    def require_available(self) -> None:
        """Check that litellm knows the provider of every model, and that each can search the web if it is to.

        Raises:
            JobError: If not; the message explains what to change.
        """
        for tier in self.fallback_chain if self.mode == FLEX else ():
            if not tier.model.startswith(FLEX_PROVIDER) or tier._expected_price() is None:  # noqa: SLF001 -- its own kind
                raise JobError(
                    f"mode: flex: model {tier.model!r} has no price for OpenAI's flex tier in litellm's table. Name "
                    "one that has, such as 'openai/gpt-5-mini', state the executor's usd_per_million for a server "
                    "behind openai/, or set mode to 'live'."
                )
        for model in self.models:
            if not has_known_provider(model):
                raise _unknown_model(model)
            if self.search_options is not None and self.mode == "batch":
                raise JobError("web_search: a provider's batch has no web search; set mode to 'live', or leave it out.")
            if self.web_search and not supports_web_search(model):
                raise JobError(
                    f"web_search: model {model!r} isn't known to search the web: name one that does, such as "
                    "'openai/gpt-4o-search-preview', or leave web_search out. If your server does search, set "
                    "'web_search_options' in params instead."
                )

    def require_supported(self, briefs: Sequence[Brief]) -> None:
        """Check that no brief has a command, and none a model of its own beside a cascade.

        Raises:
            JobError: If one has; the message says what to change.
        """
        require_no_command(briefs, type(self).__name__)
        if self.cascade and (problem := own_model_problem(self.cascade, briefs)):
            raise JobError(problem)

    def count_tokens(self, brief: Brief, item: Item) -> int:
        """Return the estimated number of tokens of a prompt, without sending anything.

        Raises:
            BriefError: If the brief uses a field that the item doesn't have.
        """
        chat = build_messages(Ask(brief=brief.fill_placeholders(item), item=item), schema_in_prompt=True)
        return count_prompt_tokens(self.model, chat)

    def prefix_tokens(self, brief: Brief) -> int:
        """Return how many tokens each prompt of a brief begins with that its provider caches; 0: none.

        Args:
            brief: The brief, as it is for all items: with placeholders, each item has a prompt of its own.
        """
        cache = None if self.mode == "batch" else listed_prefix_cache(self.model)
        texts = (brief.scope, brief.instructions, *brief.constraints)
        if cache is None or any(map(placeholders, texts)):
            return 0
        prefix = build_messages(Ask(brief=brief, item=Item(key="any", value="")), schema_in_prompt=True)[:1]
        if len(prefix[0]["content"].encode()) < cache.min_tokens:  # no tokenizer yields more tokens than bytes
            return 0
        tokens = count_prompt_tokens(self.model, prefix)
        return tokens // PREFIX_STEP * PREFIX_STEP if tokens >= cache.min_tokens else 0

    def prefix_prices(self) -> Price | None:
        """Return US dollars per token read from the provider's cache and written into it, by litellm's table.

        A stated price counts for all tokens.
        """
        cache = listed_prefix_cache(self.model, self.price_tier) if self._price() is None else None
        return cache and cache.prices

    def _marks_prefix(self, ask: Ask) -> bool:
        """Return whether a call marks its brief for the provider's cache."""
        return ask.is_prefix_shared and (cache := listed_prefix_cache(self.model)) is not None and cache.by_marks

    def expected_completion_tokens(self, brief: Brief) -> int:  # noqa: ARG002 -- a better guess may use it
        """Return the assumed length of an answer: 500 tokens, or the cap in `params` if that is less."""
        caps = [self.params.get(name) for name in ANSWER_LIMIT_PARAMS]
        return min([EXPECTED_COMPLETION_TOKENS, *(cap for cap in caps if isinstance(cap, int))])

    def context_tokens(self) -> int | None:
        """Return the smallest context window of the models, by litellm's table; None if one of them is unknown."""
        sizes = [SLOT_TOKENS if is_local(model) else listed_tokens(model, "input") for model in self.models]
        known = [size for size in sizes if size is not None]
        return min(known) if len(known) == len(sizes) else None

    def price(self) -> Price | None:
        """Return US dollars per token sent and per token received in the tier of the mode, by the dearest model."""
        return self.price_for(1)

    def price_for(self, prompt_tokens: int) -> Price | None:
        """Return the price of a call whose prompt is so long: some models cost more per token for a long one."""
        if self.mode == "batch":
            return self.batch_variant.price()
        prices = [tier._expected_price(prompt_tokens) for tier in self.fallback_chain]  # noqa: SLF001 -- its own kind
        known = [price for price in prices if price is not None]
        return (max(sent for sent, _ in known), max(got for _, got in known)) if len(known) == len(prices) else None

    def call_fee(self) -> float | None:
        """Return the price of one web search by litellm's table, by the dearest model; 0 without a search."""
        if (search := self.search_options) is None:
            return 0.0
        fees = [listed_search_price(model, search) for model in self.models]
        known = [fee for fee in fees if fee is not None]
        return max(known) if len(known) == len(fees) else None

    def cost_bound(self, ask: Ask) -> CostBound:
        """Return the upper bound of a call: by its prompt, the longest answer, and the highest price."""
        sent = max_prompt_tokens(self.model, build_messages(ask, schema_in_prompt=True))
        got = self._max_answer_tokens()
        price = self._price() or listed_price(self.model, sent)
        if price and self.price_tier == PRIORITY and not self._price():
            dearer = listed_tier_price(self.model, PRIORITY, sent)
            price = dearer and (max(price[0], dearer[0]), max(price[1], dearer[1]))
        if price and self._marks_prefix(ask) and (cached := self.prefix_prices()):
            price = max(price[0], cached[1]), price[1]  # writing into the cache costs more
        fee = self.call_fee()
        if price is None or fee is None or (got is None and price[1]):
            cost = None
        else:
            cost = fee + sent * price[0] + (got or 0) * price[1]
        return CostBound(prompt_tokens=sent, completion_tokens=got, cost_usd=cost)

    def _max_answer_tokens(self) -> int | None:
        """Return the upper bound of an answer's tokens: by `params`, else by litellm's table; None where unknown."""
        local = is_local(self.model)
        params = {**(LOCAL_PARAMS if local else {}), **self.params}
        caps = [cap for name in ANSWER_LIMIT_PARAMS if isinstance(cap := params.get(name), int) and cap > 0]
        return max(caps) if caps else SLOT_TOKENS if local else listed_tokens(self.model, "output")

    def cheap_tier(self, cascade: Cascade) -> LLM:
        """Return the cheap model of a cascade as an executor."""
        own = {"api_base": cascade.api_base, "credentials": cascade.credentials, "params": cascade.params}
        given = {name: value for name, value in own.items() if value is not None}
        price = {"usd_per_million": cascade.usd_per_million}
        return self._with_single_model(cascade.cheap).model_copy(update={**given, **price})

    def _with_single_model(self, model: str) -> LLM:
        """Return this executor with one model, no fallbacks and no cascade; address and key only for its provider."""
        same_provider = model.partition("/")[0] == self.model.partition("/")[0]
        other_provider = {} if same_provider else {"api_base": None, "credentials": None}
        return self.model_copy(update={"model": model, "fallbacks": (), "cascade": None, **other_provider})

    async def _call_target(self) -> dict[str, Any]:
        """Return the arguments of a call that name the model, its address and its key."""
        if is_local(self.model):
            served = await asyncio.to_thread(serve, self.model)
            return {"model": f"openai/{self.model}", "api_base": served.api_base, "api_key": served.api_key}
        key = await load_key(self.credentials) if self.credentials else {}
        return {"model": self.model, "api_base": self.api_base, **key}

    def _expected_price(self, prompt_tokens: int = 1) -> Price | None:
        """Return the price per token that a call of this model is expected to have; None if unknown."""
        return self._price(self.price_tier) or listed_tier_price(self.model, self.price_tier, prompt_tokens)

    def _price(self, tier: str = LIVE) -> Price | None:
        """Return the price per token in a price tier if it is known without litellm's table; else None."""
        if is_local(self.model):
            return 0.0, 0.0
        if self.usd_per_million is not None:
            price = self.usd_per_million[0] / 1e6, self.usd_per_million[1] / 1e6
            return halve(price) if tier == FLEX else price
        return None


def _named_tier(params: Params) -> object:
    """Return the service tier that the parameters of a call name; None for none."""
    extra = params.get("extra_body")
    return params.get("service_tier") or (extra.get("service_tier") if isinstance(extra, dict) else None)


_CONNECT_S = 60.0
"""Time limit for opening a connection, in seconds."""

_NEEDS_CLIENT = ("gemini/", "vertex_ai/")
"""Providers whose streams litellm requests without the call's time-out, so that a client with it has to be passed."""


async def _complete_streaming(litellm: Any, model: str, request: dict[str, Any], idle_s: float) -> Any:  # noqa: ANN401 -- a module, and its ModelResponse
    """Send a request as a stream, and return the assembled response.

    Args:
        litellm: The module.
        model: Name of the model, for errors.
        request: The arguments of `acompletion`.
        idle_s: Seconds without a new byte after which the connection is closed.

    Raises:
        TransientError: If the stream was idle for too long, or ended before the answer was complete.
    """
    import httpx  # noqa: PLC0415 -- comes with litellm, and is loaded with it
    from openai import AsyncStream  # noqa: PLC0415 -- as above

    # 1. Open the stream. Its read time-out is the idle limit.
    refusals: list[str] = []
    pages: list[Any] = []
    timeout = httpx.Timeout(_CONNECT_S, read=idle_s)
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "timeout": timeout}
    if model.startswith(_NEEDS_CLIENT):
        more["client"] = _client(litellm, timeout)
    try:
        stream = await litellm.acompletion(**request, **more)
        # 2. Read it to its end; litellm collects the chunks.
        raw: object = stream.completion_stream
        if isinstance(raw, AsyncStream):
            stream.completion_stream = _collect_dropped_fields(stream.completion_stream, refusals, pages)
        async with aclosing(stream):
            async for _ in stream:
                pass
    except Exception as error:  # a client may raise anything; the caller classifies it, but for the idle limit
        if is_read_timeout(error):
            raise _stream_error(f"{model!r} failed: nothing came for {idle_s:g} s", "idle") from None
        raise
    # 3. Check that it is complete, and assemble the response.
    if not stream.chunks:
        raise _stream_error(f"{model!r} failed: the response was no stream", "malformed")
    if not (stream.received_finish_reason or stream.intermittent_finish_reason):
        raise _stream_error(f"{model!r} failed: the stream ended before the answer did", "connection")
    return _assemble_response(litellm, stream.chunks, refusals, pages)


def _client(litellm: Any, timeout: Any) -> Any:  # noqa: ANN401 -- as above
    """Return litellm's HTTP client with a time-out."""
    handlers = import_module("litellm.llms.custom_httpx.http_handler")
    return handlers.get_async_httpx_client(litellm.LlmProviders.VERTEX_AI, params={"timeout": timeout})


async def _collect_dropped_fields(stream: Any, refusals: list[str], pages: list[Any]) -> AsyncGenerator[Any, None]:  # noqa: ANN401 -- openai's stream
    """Yield the chunks of a stream, and collect what litellm drops: refusals, and the pages of a web search."""
    async with stream:
        async for chunk in stream:
            pages[:] = list_field(chunk, "search_results") or pages  # each chunk has the whole list
            deltas = (choice.delta for choice in chunk.choices)
            refusals.extend(filter(None, (getattr(delta, "refusal", None) for delta in deltas)))
            yield chunk


def _assemble_response(litellm: Any, chunks: list[Any], refusals: list[str], pages: list[Any]) -> Any:  # noqa: ANN401 -- as above
    """Return the response of a stream, without a usage that litellm has estimated, and with what it drops."""
    response = litellm.stream_chunk_builder(chunks)
    if not any(getattr(chunk, "usage", None) for chunk in chunks):
        response.usage = None
    if refusals:
        response.choices[0].message.provider_specific_fields = {"refusal": "".join(refusals)}
    if pages:
        response.search_results = pages
    return response


def _stream_error(message: str, kind: str) -> TransientError:
    return TransientError(message, kind=kind, usage=Usage(requests=1, unsettled=1))


def _unknown_model(model: str) -> JobError:
    return JobError(f"Model {model!r} is unknown to litellm: name it as provider/model.")
