"""Requests that are handed to a provider in one file, and answered within a day for about half the price.

The provider's files are read as data of a stranger: line by line, each in a bounded size and a known form;
what fits no form, or answers nothing that was asked, is passed over.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.errors import ExecutorError, RejectedError
from prefect_dispatch.executors.batch_lines import Line, result_of
from prefect_dispatch.executors.exchange import Exchange, ResponseTooLargeError, exchanging
from prefect_dispatch.executors.failures import failure_of
from prefect_dispatch.executors.keys import key_of, of_block
from prefect_dispatch.executors.provider import provider
from prefect_dispatch.executors.request import request_for
from prefect_dispatch.models import Usage
from prefect_dispatch.outputs import schema_of
from prefect_dispatch.scrub import scrub
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Collection, Sequence

    from prefect_dispatch.executors.base import Ask, Reply
    from prefect_dispatch.executors.llm import LLM

MOST_LINES = 50_000
"""Requests of one batch."""
MOST_BYTES = 190_000_000
"""Bytes of one batch's file: a little less than what OpenAI takes."""
FILE_RESPONSES = 64
"""How many times the most bytes of one response a file of a provider may have."""
LONGEST_LINE = 16_000_000
"""Bytes of one line of a provider's file that are read."""

_PROVIDER = "openai"
_ENDPOINT = "/v1/chat/completions"
_TAG = "prefect-dispatch"
"""The key under which a batch carries our name for it, by which it is found again."""
_PAGE, _PAGES = 100, 50
_SKEW_S = 3600.0
"""How far a provider's clock may be from ours."""
_SETTLING_S = 600.0
"""How long a batch may be complete before its files are named."""
_CALL_S = 600.0
_NOT_FOUND = 404


class Batch(NamedTuple):
    """What a provider says of a batch."""

    id: str
    status: str
    """`validating`, `in_progress`, `completed`, `failed`, `expired`, `cancelled`, …; `gone` if it knows of none."""
    ended: bool
    """Whether nothing more will come of it."""
    files: tuple[str, ...] = ()
    """Where its answers are, and after them its errors."""
    done: int = 0
    """How many requests it has worked off."""
    problems: str = ""
    """Why it was not worked off at all."""


class BatchAPI:
    """The batches of one model's provider.

    Args:
        llm: Who is asked; its fallbacks are not.
    """

    def __init__(self, llm: LLM) -> None:
        """Keep who is asked, at the price of a batch."""
        self.who = llm.in_batch

    def line(self, name: str, ask: Ask) -> bytes:
        """Return the line of a file that asks what a call would ask.

        Raises:
            ExecutorError: If the model doesn't take its parameters.
        """
        litellm = provider()
        try:
            method = self.who.method(litellm, schema_of(ask.brief.output), tries=False)
            request = request_for(litellm, ask, self.who.model, self.who.params, method)
            body = _body(litellm, request, self.who.model)
        except Exception as error:  # noqa: BLE001 -- as of a call
            raise failure_of(error, self.who.model) from None
        line = {"custom_id": name, "method": "POST", "url": _ENDPOINT, "body": body}
        return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    async def upload(self, lines: Sequence[bytes]) -> str:
        """Give the provider a file of requests, and return its name there; nothing is asked by that.

        Raises:
            ExecutorError: If it doesn't take it.
        """
        litellm = await asyncio.to_thread(provider)
        file = ("requests.jsonl", b"".join(lines), "application/jsonl")
        said = await self._said(litellm.acreate_file(file=file, purpose="batch", **await self._target()))
        return str(said.id)

    async def create(self, file: str, tag: str) -> Batch:
        """Have a file of requests worked off.

        Raises:
            ExecutorError: If the provider doesn't take it, or nobody knows whether it did.
        """
        litellm = await asyncio.to_thread(provider)
        how: dict[str, Any] = {"completion_window": "24h", "endpoint": _ENDPOINT, "metadata": {_TAG: tag}}
        return _batch(await self._said(litellm.acreate_batch(input_file_id=file, **how, **await self._target())))

    async def look(self, batch: str) -> Batch:
        """Return how far a batch is.

        Raises:
            ExecutorError: If the provider doesn't say.
        """
        litellm = await asyncio.to_thread(provider)
        quiet = {"litellm_metadata": {"batch_ignore_default_logging": True}}  # or it fetches the files each time
        said = await self._said(litellm.aretrieve_batch(batch_id=batch, **quiet, **await self._target()), missing=True)
        return Batch(batch, "gone", ended=True) if said is None else _batch(said)

    async def find(self, tag: str, since: float) -> Batch | None:
        """Return the batch that was created with a tag, or None if there is none.

        Args:
            tag: The tag.
            since: Seconds since the epoch, before which it can't have been created.

        Raises:
            ExecutorError: If the provider doesn't list its batches.
        """
        litellm = await asyncio.to_thread(provider)
        after: dict[str, str] = {}
        for _ in range(_PAGES):
            page = await self._said(litellm.alist_batches(limit=_PAGE, **after, **await self._target()), missing=True)
            if page is None:
                raise RejectedError(f"{self.who.model!r} lists no batches.", kind="no_list", usage=Usage())
            found: Any = next(
                (each for each in page.data if (each.metadata or dict[str, str]()).get(_TAG) == tag), None
            )
            if found is not None:
                return _batch(found)
            if not page.data or not page.has_more or page.data[-1].created_at < since - _SKEW_S:
                return None
            after = {"after": page.data[-1].id}
        msg = f"{self.who.model!r} lists more batches than were looked through."
        raise RejectedError(msg, kind="too_many", usage=Usage())

    async def answers(self, batch: Batch, names: Collection[str]) -> dict[str, Reply | ExecutorError]:
        """Return what came of the requests of a batch, by their names; each name once at most.

        Raises:
            ExecutorError: If a file can't be read to its end.
        """
        found: dict[str, Reply | ExecutorError] = {}
        wanted = frozenset(names)
        for file in batch.files:
            async for line in self._lines(file):
                read = Line.read(line)
                if read and read.custom_id in wanted and read.custom_id not in found:
                    found[read.custom_id] = self._expected(result_of(read, self.who.model, self.who.price()))
        return found

    def _expected(self, result: Reply | ExecutorError) -> Reply | ExecutorError:
        """Return a result, or the error of a reply from another model where that is one."""
        try:
            if not isinstance(result, ExecutorError):
                self.who.require_expected(result)
        except ExecutorError as error:
            return error
        return result

    async def _lines(self, file: str) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a file that are not too long; of one that isn't there none."""
        litellm = await asyncio.to_thread(provider)
        most = FILE_RESPONSES * settings().max_response_bytes
        stream = await self._said(
            litellm.afile_content(file_id=file, stream=True, **await self._target()),
            missing=True,
            exchange=Exchange(self.who.model, most, inspects=False),
        )
        if stream is None:
            return
        rest, too_long, size = b"", False, 0
        chunks = aiter(stream.stream_iterator)
        while (chunk := await self._said(anext(chunks, None))) is not None:
            size += len(chunk)  # not every client of litellm's reads a stream through the exchange
            if size > most:
                too_large = ResponseTooLargeError(f"the file is longer than {most} bytes")
                raise failure_of(too_large, self.who.model)
            first, *more = chunk.split(b"\n")
            rest += b"" if too_long else first
            for part in more:
                if not too_long:
                    yield rest
                rest, too_long = part, False
            too_long = too_long or len(rest) > LONGEST_LINE
            rest = b"" if too_long else rest
        yield rest

    async def _said(
        self,
        call: Awaitable[Any],
        *,
        missing: bool = False,
        exchange: Exchange | None = None,
    ) -> Any:  # noqa: ANN401 -- litellm's
        """Return what a call brings; None for what isn't there, if that may be."""
        within = exchange or Exchange(self.who.model, inspects=False)
        try:
            with exchanging(within):
                return await call
        except Exception as error:  # noqa: BLE001 -- a provider's client may raise anything; its words need scrubbing
            if missing and getattr(error, "status_code", None) == _NOT_FOUND:
                return None
            raise of_block(failure_of(within.failure or error, self.who.model), self.who.credentials) from None

    async def _target(self) -> dict[str, Any]:
        at = {"api_base": self.who.api_base} if self.who.api_base else {}
        return {
            "custom_llm_provider": _PROVIDER,
            "max_retries": 0,
            "timeout": _CALL_S,
            **at,
            **await key_of(self.who.credentials),
        }


def _batch(said: Any) -> Batch:  # noqa: ANN401 -- litellm's
    files = tuple(str(file) for file in (said.output_file_id, said.error_file_id) if file)
    listed = (said.errors.data if said.errors else None) or ()
    problems = " ".join(str(each.message) for each in listed[:3] if each.message)
    status, counts = str(said.status), said.request_counts
    settled = files or time.time() - (said.completed_at or 0) > _SETTLING_S
    ended = status in {"failed", "expired", "cancelled"} or (status == "completed" and bool(settled))
    done = (counts.completed or 0) + (counts.failed or 0) if counts else 0
    return Batch(str(said.id), status, ended, files, done, scrub(problems)[:300])


def _body(litellm: Any, request: dict[str, Any], model: str) -> dict[str, Any]:  # noqa: ANN401 -- a module
    """Return the request as it would stand on the wire."""
    named, name, _, _ = litellm.get_llm_provider(model=model)
    chat = request.pop("messages")
    ours = {key: value for key, value in request.items() if key not in {"num_retries", "max_retries"}}
    how = litellm.utils.get_optional_params(model=named, custom_llm_provider=name, messages=chat, **ours)
    config = litellm.utils.ProviderConfigManager.get_provider_chat_config(
        model=named, provider=litellm.LlmProviders(name)
    )
    body: dict[str, Any] = config.transform_request(
        model=named, messages=chat, optional_params=how, litellm_params={}, headers={}
    )
    more: dict[str, Any] = body.pop("extra_body", None) or {}
    body.pop("stream", None)
    return {**body, **more}
