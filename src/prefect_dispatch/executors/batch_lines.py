"""A line of a provider's file: data of a stranger, in a known form or passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, JsonValue, ValidationError

from prefect_dispatch.errors import ExecutorError, TransientError
from prefect_dispatch.executors.failures import failure_of
from prefect_dispatch.executors.provider import Price, provider, reply_of
from prefect_dispatch.executors.response_body import read_body
from prefect_dispatch.models import Usage
from prefect_dispatch.scrub import scrub

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Reply

_OK = 200


class _Error(BaseModel):
    code: str | None = None
    message: str | None = None


class _Response(BaseModel):
    status_code: int
    body: dict[str, JsonValue] = Field(default_factory=dict)


class Line(BaseModel):
    """A line of a file of answers or of errors."""

    custom_id: str
    """Our name for the request."""
    response: _Response | None = None
    """What a call would have got."""
    error: _Error | None = None
    """Why there is no response."""

    @classmethod
    def read(cls, line: bytes) -> Line | None:
        """Return what a line says; None if it is no such line."""
        try:
            return cls.model_validate_json(line)
        except ValidationError:
            return None


class _FailedLine(Exception):  # noqa: N818 -- never raised: told as an error of litellm's would be
    """A request that failed within a batch."""

    litellm_response_headers: dict[str, str]

    def __init__(self, status: int, body: dict[str, JsonValue], message: str) -> None:
        super().__init__(message)
        self.status_code, self.body, self.litellm_response_headers = status, body, {}

    @classmethod
    def of(cls, line: Line) -> _FailedLine:
        said: JsonValue = line.response.body.get("error") if line.response else None
        details = said if isinstance(said, dict) else line.error.model_dump() if line.error else {}
        message = details.get("message")
        status = line.response.status_code if line.response else _OK
        return cls(status, details, message if isinstance(message, str) else "it failed")


def result_of(line: Line, model: str, price: Price | None) -> Reply | ExecutorError:
    """Return the reply in a line, as if it had come live, or the error.

    Args:
        line: What was read.
        model: Who was asked.
        price: What a batch costs; None where that is unknown.
    """
    if line.error and line.error.code == "batch_expired":
        return TransientError(f"{model!r}: the batch expired before this was asked.", kind="expired", usage=Usage())
    if line.response is None or line.response.status_code != _OK:
        return failure_of(_FailedLine.of(line), model)
    served, _ = read_body(line.response.body, model)
    try:
        response = provider().utils.convert_to_model_response_object(
            response_object=line.response.body, model_response_object=provider().ModelResponse()
        )
        return reply_of(response, model, price, served)
    except Exception as error:  # noqa: BLE001 -- a stranger's data may break litellm anywhere
        why, usage = scrub(type(error).__name__), Usage(requests=1, unsettled=1)
        return TransientError(f"{model!r} failed: its answer can't be read ({why})", kind="malformed", usage=usage)
