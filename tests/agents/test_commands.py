"""The command `mcp`: what its options mean, and where it doesn't start."""

from __future__ import annotations

import asyncio
import io
import sys
from typing import TYPE_CHECKING

import pytest
from mcp import Client

from prefect_dispatch.agents.server import create_server
from prefect_dispatch.cli import main
from prefect_dispatch.cli.jobs import create_policy
from prefect_dispatch.cli.parser import create_parser
from prefect_dispatch.errors import JobError

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.agents.policy import Policy


def policy_of(*options: str) -> Policy:
    """Return what options allow."""
    return create_policy(create_parser().parse_args(["mcp", *options]))


def test_the_defaults(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without options jobs read the current folder, ask the default model, and spend a dollar at most."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("PREFECT_DISPATCH_MODEL", "openai/gpt-5-mini")
    policy = policy_of()
    assert (policy.root, policy.models, policy.allow) == (str(root), ("openai/gpt-5-mini",), ())
    assert (policy.max_usd, policy.total_usd, policy.max_items, policy.max_concurrency) == (1.0, 1.0, 200, 8)


def test_the_options(root: Path) -> None:
    """Each option allows more, and several kinds may be given at once or one after another."""
    policy = policy_of(
        *("--root", str(root), "--models", "openai/*,anthropic/claude-sonnet-4-5", "--max-usd", "2"),
        *("--max-usd-total", "10", "--max-items", "500", "--max-concurrency", "16"),
        *("--allow", "shell", "coding", "--allow", "shell"),
    )
    assert (policy.models, policy.allow) == (("openai/*", "anthropic/claude-sonnet-4-5"), ("shell", "coding"))
    assert (policy.max_usd, policy.total_usd, policy.max_items, policy.max_concurrency) == (2.0, 10.0, 500, 16)


def test_wrong_options(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong option is named."""
    with pytest.raises(JobError, match=r"^--root: there is no folder"):
        policy_of("--root", str(root / "nothing"))
    with pytest.raises(JobError, match=r"^--root: the state folder .* is below"):
        policy_of("--root", str(root.parent))
    for usd in ("0", "nan", "-1"):
        with pytest.raises(JobError, match=r"^--max-usd: "):
            policy_of("--root", str(root), f"--max-usd={usd}")
    with pytest.raises(JobError, match=r"^--max-concurrency: "):
        policy_of("--root", str(root), "--max-concurrency", "1001")


def test_where_it_does_not_start(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An agent of a job gets no server, and without the extra there is none."""
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT_DISPATCH_LEASE", "0123456789ab")
        assert main(["mcp", "--root", str(root)]) == 2
    assert "works for a job already" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mcp", None)
        assert main(["mcp", "--root", str(root)]) == 2
    assert "pip install 'prefect-dispatch[mcp]'" in capsys.readouterr().err


def test_it_ends_with_its_client(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that closes standard input ends the server."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    assert main(["mcp", "--root", str(root)]) == 0


def test_what_was_not_planned_is_not_started(policy: Policy) -> None:
    """A fingerprint that no plan has returned starts nothing, and no form asks for it."""

    async def start() -> str:
        async with Client(create_server(policy)) as client:
            return str(await client.call_tool("start", {"fingerprint": "0" * 64}))

    assert "There is no job" in asyncio.run(start())
