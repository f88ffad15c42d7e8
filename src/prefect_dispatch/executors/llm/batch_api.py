"""Client of a provider's batch API: requests in one file, answered within a day for about half the price.

The provider's files are untrusted data: they are read line by line, each with a bounded size and a known form; a line
of another form, or one that answers no request, is skipped.
"""

from __future__ import annotations

import asyncio
import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, Field, JsonValue, ValidationError

from prefect_dispatch.errors import ExecutorError, RejectedError, TransientError
from prefect_dispatch.executors.block_references import load_key, name_block_in_failure
from prefect_dispatch.executors.llm.direct_calls import convert_response, translate_request
from prefect_dispatch.executors.llm.http_exchange import (
    Exchange,
    HTTPError,
    ResponseTooLargeError,
    inspect_body,
    use_exchange,
)
from prefect_dispatch.executors.llm.litellm_adapter import Price, load_litellm, parse_response
from prefect_dispatch.executors.llm.messages import build_request
from prefect_dispatch.executors.llm.provider_errors import classify_error
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.models.output_schema import schema_of
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Collection, Sequence

    from prefect_dispatch.executors.base import Ask, Reply
    from prefect_dispatch.executors.llm.llm import LLM


class _Error(BaseModel):
    code: str | None = None
    message: str | None = None


class _Response(BaseModel):
    status_code: int
    body: dict[str, JsonValue] = Field(default_factory=dict)


class ResultLine(BaseModel):
    """A line of a file with results or errors."""

    custom_id: str
    """Our name for the request."""
    response: _Response | None = None
    """The response that a live call would have got."""
    error: _Error | None = None
    """Why there is no response."""

    @classmethod
    def parse(cls, line: bytes) -> ResultLine | None:
        """Parse a line; return None if it has another form."""
        try:
            return cls.model_validate_json(line)
        except ValidationError:
            return None

    def to_error(self) -> HTTPError:
        """Return the error of a request without a successful response."""
        if self.response:
            return HTTPError(self.response.status_code, {}, json.dumps(self.response.body))
        error = self.error or _Error(message="it failed")
        return HTTPError(HTTPStatus.OK, {}, json.dumps({"error": error.model_dump()}))


def parse_result(line: ResultLine, model: str, price: Price | None) -> Reply | ExecutorError:
    """Return the reply in a line, or its error, as for a live call.

    Args:
        line: The line.
        model: The model that was asked.
        price: The price of a batch; None where it is unknown.
    """
    if line.error and line.error.code == "batch_expired":
        return TransientError(f"{model!r}: the batch expired before this was asked.", kind="expired", usage=Usage())
    if line.response is None or line.response.status_code != HTTPStatus.OK:
        return classify_error(line.to_error(), model)
    served, _ = inspect_body(line.response.body, model)
    try:
        return parse_response(convert_response(load_litellm(), line.response.body), model, price, served)
    except Exception as error:  # noqa: BLE001 -- untrusted data may break litellm anywhere
        why, usage = redact(type(error).__name__), Usage(requests=1, unsettled=1)
        return TransientError(f"{model!r} failed: its answer can't be read ({why})", kind="malformed", usage=usage)


MOST_LINES = 50_000
"""Upper bound of the requests of one batch."""

MOST_BYTES = 190_000_000
"""Upper bound of the bytes of a batch's file: a little less than OpenAI accepts."""

FILE_RESPONSES = 64
"""Upper bound of a provider's file, in multiples of the upper bound of one response."""

LONGEST_LINE = 16_000_000
"""Upper bound of the bytes of a line of a provider's file; longer lines are skipped."""

_PROVIDER = "openai"
_ENDPOINT = "/v1/chat/completions"

_TAG = "prefect-dispatch"
"""Key of our tag in the metadata of a batch, by which a lost batch is found."""

_PAGE, _PAGES = 100, 50

_SKEW_S = 3600.0
"""Upper bound of the difference between a provider's clock and ours, in seconds."""

_SETTLING_S = 600.0
"""Seconds for which a complete batch may have no files yet."""

_CALL_S = 600.0


class Batch(NamedTuple):
    """State of a batch at its provider."""

    id: str
    """The provider's id of the batch."""
    status: str
    """`validating`, `in_progress`, `completed`, `failed`, `expired`, `cancelled`, …; `gone` if it doesn't exist."""
    ended: bool
    """Whether it is finished and no more results will follow."""
    files: tuple[str, ...] = ()
    """Ids of the file with its results, and of the file with its errors."""
    done: int = 0
    """Number of requests that are processed."""
    problems: str = ""
    """Why it was rejected as a whole."""


class BatchAPI:
    """Client for the batches of one model.

    Args:
        llm: The executor; its fallbacks are not used.
    """

    def __init__(self, llm: LLM) -> None:
        """Store the executor, with the price of a batch."""
        self.llm = llm.batch_variant

    def request_line(self, name: str, ask: Ask) -> bytes:
        """Return the line of a request file for an ask, with the same request as a live call.

        Args:
            name: Our name for the request, by which its result is found.
            ask: The ask.

        Raises:
            ExecutorError: If the model doesn't support a parameter.
        """
        litellm = load_litellm()
        try:
            method = self.llm.output_method(litellm, schema_of(ask.brief.output), tries=False)
            request = build_request(litellm, ask, self.llm.model, self.llm.params, method)
            body = translate_request(litellm, {"model": self.llm.model, **request})
        except Exception as error:  # noqa: BLE001 -- as in a live call
            raise classify_error(error, self.llm.model) from None
        line = {"custom_id": name, "method": "POST", "url": _ENDPOINT, "body": body}
        return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    async def upload(self, lines: Sequence[bytes]) -> str:
        """Upload a file of requests, and return its id; no request is processed by that.

        Raises:
            ExecutorError: If the provider rejects it.
        """
        litellm = await asyncio.to_thread(load_litellm)
        file = ("requests.jsonl", b"".join(lines), "application/jsonl")
        created = await self._call_provider(litellm.acreate_file(file=file, purpose="batch", **await self._target()))
        return str(created.id)

    async def create_batch(self, file: str, tag: str) -> Batch:
        """Create a batch for an uploaded file of requests.

        Args:
            file: The id of the file.
            tag: Our name for the batch, by which `find_batch` finds it.

        Raises:
            ExecutorError: If the provider rejects it, or it is unknown whether the batch was created.
        """
        litellm = await asyncio.to_thread(load_litellm)
        options: dict[str, Any] = {"completion_window": "24h", "endpoint": _ENDPOINT, "metadata": {_TAG: tag}}
        return _to_batch(
            await self._call_provider(litellm.acreate_batch(input_file_id=file, **options, **await self._target()))
        )

    async def get_batch(self, batch: str) -> Batch:
        """Return the state of a batch, by its id.

        Raises:
            ExecutorError: If the request fails.
        """
        litellm = await asyncio.to_thread(load_litellm)
        # With its default logging litellm would download the files each time.
        quiet = {"litellm_metadata": {"batch_ignore_default_logging": True}}
        response = await self._call_provider(
            litellm.aretrieve_batch(batch_id=batch, **quiet, **await self._target()), missing=True
        )
        return Batch(batch, "gone", ended=True) if response is None else _to_batch(response)

    async def find_batch(self, tag: str, since: float) -> Batch | None:
        """Return the batch that was created with a tag, or None if there is none.

        Args:
            tag: The tag.
            since: Lower bound of the time at which it was created, in seconds since the epoch.

        Raises:
            ExecutorError: If the provider doesn't list its batches.
        """
        litellm = await asyncio.to_thread(load_litellm)
        after: dict[str, str] = {}
        for _ in range(_PAGES):
            page = await self._call_provider(
                litellm.alist_batches(limit=_PAGE, **after, **await self._target()), missing=True
            )
            if page is None:
                raise RejectedError(f"{self.llm.model!r} lists no batches.", kind="no_list", usage=Usage())
            match: Any = next(
                (each for each in page.data if (each.metadata or dict[str, str]()).get(_TAG) == tag), None
            )
            if match is not None:
                return _to_batch(match)
            if not page.data or not page.has_more or page.data[-1].created_at < since - _SKEW_S:
                return None
            after = {"after": page.data[-1].id}
        msg = f"{self.llm.model!r} lists more batches than were looked through."
        raise RejectedError(msg, kind="too_many", usage=Usage())

    async def download_results(self, batch: Batch, names: Collection[str]) -> dict[str, Reply | ExecutorError]:
        """Download the results of a batch.

        Args:
            batch: The batch.
            names: Our names of the requests; other results are skipped.

        Returns:
            The first result for each name, as far as there is one.

        Raises:
            ExecutorError: If a file can't be read to its end.
        """
        results: dict[str, Reply | ExecutorError] = {}
        wanted = frozenset(names)
        for file in batch.files:
            async for line in self._iter_lines(file):
                parsed = ResultLine.parse(line)
                if parsed and parsed.custom_id in wanted and parsed.custom_id not in results:
                    results[parsed.custom_id] = self._enforce_expected_model(
                        parse_result(parsed, self.llm.model, self.llm.price())
                    )
        return results

    def _enforce_expected_model(self, result: Reply | ExecutorError) -> Reply | ExecutorError:
        """Return a result; in place of a reply from another model the error, if `strict_model` is set."""
        try:
            if not isinstance(result, ExecutorError):
                self.llm.require_expected(result)
        except ExecutorError as error:
            return error
        return result

    async def _iter_lines(self, file: str) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a file, without those that are too long; nothing if the file doesn't exist."""
        litellm = await asyncio.to_thread(load_litellm)
        most = FILE_RESPONSES * settings().max_response_bytes
        stream = await self._call_provider(
            litellm.afile_content(file_id=file, stream=True, **await self._target()),
            missing=True,
            exchange=Exchange(self.llm.model, most, inspects=False),
        )
        if stream is None:
            return
        # `rest` is the incomplete last line; one that is too long is skipped up to its end.
        rest, too_long, size = b"", False, 0
        chunks = aiter(stream.stream_iterator)
        while (chunk := await self._call_provider(anext(chunks, None))) is not None:
            size += len(chunk)  # some of litellm's clients don't read a stream through the exchange
            if size > most:
                too_large = ResponseTooLargeError(f"the file is longer than {most} bytes")
                raise classify_error(too_large, self.llm.model)
            first, *more = chunk.split(b"\n")
            rest += b"" if too_long else first
            for part in more:
                if not too_long:
                    yield rest
                rest, too_long = part, False
            too_long = too_long or len(rest) > LONGEST_LINE
            rest = b"" if too_long else rest
        yield rest

    async def _call_provider(
        self,
        call: Awaitable[Any],
        *,
        missing: bool = False,
        exchange: Exchange | None = None,
    ) -> Any:  # noqa: ANN401 -- litellm's
        """Await a call of the provider, and classify its errors.

        Args:
            call: The call.
            missing: Whether a missing object (404) is no error.
            exchange: The exchange that bounds the response; a new one by default.

        Returns:
            The response; None if the object is missing.

        Raises:
            ExecutorError: If the call fails.
        """
        within = exchange or Exchange(self.llm.model, inspects=False)
        try:
            with use_exchange(within):
                return await call
        except Exception as error:  # noqa: BLE001 -- a provider's client may raise anything; its message is redacted
            if missing and getattr(error, "status_code", None) == HTTPStatus.NOT_FOUND:
                return None
            raise name_block_in_failure(
                classify_error(within.failure or error, self.llm.model), self.llm.credentials
            ) from None

    async def _target(self) -> dict[str, Any]:
        address = {"api_base": self.llm.api_base} if self.llm.api_base else {}
        return {
            "custom_llm_provider": _PROVIDER,
            "max_retries": 0,
            "timeout": _CALL_S,
            **address,
            **(await load_key(self.llm.credentials) if self.llm.credentials else {}),
        }


def _to_batch(response: Any) -> Batch:  # noqa: ANN401 -- litellm's
    """Return the state of a batch from litellm's response."""
    files = tuple(str(file) for file in (response.output_file_id, response.error_file_id) if file)
    errors = (response.errors.data if response.errors else None) or ()
    problems = " ".join(str(each.message) for each in errors[:3] if each.message)
    status, counts = str(response.status), response.request_counts
    settled = files or time.time() - (response.completed_at or 0) > _SETTLING_S
    ended = status in {"failed", "expired", "cancelled"} or (status == "completed" and bool(settled))
    done = (counts.completed or 0) + (counts.failed or 0) if counts else 0
    return Batch(str(response.id), status, ended, files, done, redact(problems)[:300])
