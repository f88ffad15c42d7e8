"""Prefect block `LLMCredentials`: the key of a language model's provider.

Prefect loads this module wherever it looks blocks up, so it imports nothing that takes long.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, cast

from prefect.blocks.abstract import CredentialsBlock
from pydantic import Field, HttpUrl, NonNegativeFloat, SecretStr, field_validator, model_validator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self

DOCUMENTATION = HttpUrl("https://pypi.org/project/prefect-dispatch/")
# Prefect accepts no `data:` address for a logo. These pictures are from the address of Prefect's own blocks: a browser
# that can load those can load these.
LOGOS = (
    "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos"
)
Price = Annotated[NonNegativeFloat, Field(title="US dollars")]
_SET_HERE = frozenset({"api_key", "api_base", "base_url", "model", "messages"})
"""Arguments of a call that come from other fields, or from the brief."""


class LLMCredentials(CredentialsBlock):
    """The key of a language model's provider, with its address, model and price. The key stays on the server.

    Runs refer to it by its name and load it where they call the model: it is in no parameter,
    fingerprint, log, stored result or artifact. A new key under the old name changes no stored answer.

    Example:
        Load stored credentials and ask with them:

        ```python
        from prefect_dispatch import LLMCredentials, LLM

        credentials = LLMCredentials.load("BLOCK_NAME")
        executor = LLM(model="openai/gpt-5-mini", credentials=credentials)
        ```
    """

    _block_type_name = "LLM Credentials"
    _block_type_slug = "llm-credentials"
    _logo_url = HttpUrl(f"{LOGOS}/secret.png")
    _documentation_url = DOCUMENTATION
    _description = (
        "The key of a language model's provider, with its address, default model and price: any provider that litellm "
        "knows. Used by prefect-dispatch, which refers to it by name."
    )

    api_key: SecretStr = Field(default=SecretStr(""), title="API key", description="The provider's key.")
    extra: SecretStr = Field(
        default=SecretStr(""),
        title="More secrets",
        description='What else litellm needs, as a JSON object, such as {"aws_access_key_id": "…", '
        '"aws_secret_access_key": "…", "aws_region_name": "…"} or {"api_version": "…"}; all of it is kept secret.',
        json_schema_extra={"format": "json-string"},
    )
    model: str = Field(
        default="",
        title="Default model",
        description="The model that is asked where a run names none, such as openai/gpt-5-mini. "
        "With it, the key is for models of its provider only.",
    )
    api_base: str = Field(
        default="", title="Address", description="The address of a server of one's own; empty for the provider's."
    )
    usd_per_million_sent: Price | None = Field(
        default=None,
        title="US dollars per million tokens sent",
        description="The price of the default model; empty for the one that litellm lists.",
    )
    usd_per_million_received: Price | None = Field(
        default=None,
        title="US dollars per million tokens received",
        description="The same for what it answers; both or neither.",
    )

    @field_validator("api_key")
    @classmethod
    def _has_no_space_around(cls, api_key: SecretStr) -> SecretStr:
        return SecretStr(api_key.get_secret_value().strip())  # a file's last newline can't go into a header

    @field_validator("extra", mode="before")
    @classmethod
    def _is_an_object(cls, extra: object) -> object:
        # A form sends a text, Python code may pass a mapping; stored is the text.
        given = extra.get_secret_value() if isinstance(extra, SecretStr) else extra
        if isinstance(given, dict):
            given = json.dumps(given)
        if not isinstance(given, str) or not given.strip():
            return "" if given is None or isinstance(given, str) else given
        try:
            read = json.loads(given)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            msg = 'must be a JSON object, such as {"aws_region_name": "…"}'
            raise ValueError(msg)  # noqa: TRY004 -- pydantic converts ValueError only
        if taken := sorted(_SET_HERE & cast("dict[str, Any]", read).keys()):
            msg = f"{taken[0]!r} can't be set here; it has a field of its own, or follows from the brief"
            raise ValueError(msg)
        return given

    @field_validator("api_base")
    @classmethod
    def _holds_no_secret(cls, api_base: str) -> str:
        if "@" in api_base or "?" in api_base:
            msg = "must be a plain address; what is secret belongs into the key"
            raise ValueError(msg)
        return api_base.strip()

    @model_validator(mode="after")
    def _has_both_prices(self) -> Self:
        if (self.usd_per_million_sent is None) != (self.usd_per_million_received is None):
            msg = "give a price for tokens sent and for tokens received, or neither"
            raise ValueError(msg)
        return self

    @property
    def price(self) -> tuple[float, float] | None:
        """US dollars per million tokens sent, and per million received; None leaves it to litellm's table."""
        if self.usd_per_million_sent is None or self.usd_per_million_received is None:
            return None
        return self.usd_per_million_sent, self.usd_per_million_received

    @property
    def arguments(self) -> dict[str, Any]:
        """The secret arguments of a litellm call."""
        key = self.api_key.get_secret_value()
        extra = self.extra.get_secret_value()
        more: dict[str, Any] = json.loads(extra) if extra else {}
        return {**more, **({"api_key": key} if key else {})}

    @property
    def secrets(self) -> frozenset[str]:
        """Every secret text in the block, for redaction."""
        return frozenset(_secret_texts(self.arguments))

    def get_client(self) -> Callable[..., Any]:
        """Return litellm's `completion`, with key, address and model in place."""
        from functools import partial  # noqa: PLC0415 -- as below

        from prefect_dispatch.executors.llm.litellm_adapter import load_litellm  # noqa: PLC0415 -- imports litellm

        at = {"api_base": self.api_base} if self.api_base else {}
        model = {"model": self.model} if self.model else {}
        return partial(load_litellm().completion, **model, **at, **self.arguments)


def _secret_texts(arguments: Mapping[str, Any], *, inside: bool = False) -> Iterator[str]:
    """Yield the texts whose names mark them as secret; a region or a version is none."""
    from prefect_dispatch.security.redaction import is_secret_name  # noqa: PLC0415 -- a server only looks the blocks up

    for name, value in arguments.items():
        secret = is_secret_name(name)
        if isinstance(value, str) and secret:
            yield value
            if not inside and value.lstrip().startswith("{"):  # a service account's file, say
                try:
                    yield from _secret_texts(json.loads(value), inside=True)
                except (ValueError, AttributeError):
                    continue
        elif isinstance(value, dict):
            yield from _secret_texts(cast("dict[str, Any]", value), inside=True)
