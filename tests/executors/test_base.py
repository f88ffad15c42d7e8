"""Executors with two members, as objects of their own or derived from the base class: what callers get for the rest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from prefect_dispatch import Ask, BaseExecutor, Brief, Command, Executor, Item, Reply
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import CostBound

BRIEF, ITEM = Brief(name="b", instructions="Say it."), Item(key="a", value="x")
ASK = Ask(brief=BRIEF, item=ITEM)


class Minimal:
    """An object with the two members of the protocol."""

    fingerprint = "minimal-1"

    async def answer(self, ask: Ask) -> Reply:
        """Return the item's key."""
        return Reply(value=ask.item.key)


class Derived(BaseExecutor):
    """The same, derived from the base class."""

    @property
    def fingerprint(self) -> str:
        """Its identity."""
        return "derived-1"

    async def answer(self, ask: Ask) -> Reply:
        """Return the item's key."""
        return Reply(value=ask.item.key)


class Able(Minimal):
    """An object that has some of the other methods, too."""

    name = "able"
    cancel_immediately = True
    fallback_chain = (Minimal(),)

    def cost_bound(self, ask: Ask) -> CostBound:
        """Bound a call by the length of its item."""
        return CostBound(prompt_tokens=len(str(ask.item.value)), cost_usd=0.5)

    def resolve_paths(self, folder: Path) -> Able:
        """Return another one."""
        assert folder == Path("job")
        return Able()

    def external_inputs(self, brief: Brief, item: Item) -> str:
        """Return what an answer depends on beside."""
        return brief.name + item.key


@pytest.mark.parametrize("executor", [Minimal(), Derived()], ids=["object", "derived"])
def test_two_members_are_enough(executor: Executor) -> None:
    """All else has a default that promises nothing."""
    base = BaseExecutor.of(executor)
    assert (base.name, base.fingerprint) == (type(executor).__name__, executor.fingerprint)
    assert base.fallback_chain == (executor,)
    assert base.resolve_paths(Path()) is executor
    flags = (base.cancel_immediately, base.ignores_feedback, base.is_deterministic, base.has_external_inputs)
    assert (*flags, base.runs_programs) == (False, False, False, False, False)
    nothing = (base.with_model("m"), base.external_inputs(BRIEF, ITEM), base.context_tokens(), base.price())
    assert nothing == (None, None, None, None)
    counts = (base.count_tokens(BRIEF, ITEM), base.expected_completion_tokens(BRIEF), base.cost_bound(ASK))
    assert counts == (None, None, None)
    base.require_available()
    base.require_supported([BRIEF])
    asyncio.run(base.warm_up())
    assert asyncio.run(base.answer(ASK)).value == "a"


@pytest.mark.parametrize("executor", [Minimal(), Derived()], ids=["object", "derived"])
def test_a_command_is_refused(executor: Executor) -> None:
    """It would be ignored; the message names the class of the user's."""
    with pytest.raises(JobError, match=f"Brief 'b' has a command, and {type(executor).__name__} runs none"):
        BaseExecutor.of(executor).require_supported([BRIEF.model_copy(update={"command": Command(run="true")})])


def test_what_an_object_has_is_used() -> None:
    """Without a base class, by the names of its methods."""
    able = Able()
    base = BaseExecutor.of(able)
    assert (base.name, base.cancel_immediately, base.fallback_chain) == ("able", True, able.fallback_chain)
    assert base.cost_bound(ASK) == CostBound(prompt_tokens=1, cost_usd=0.5)
    assert base.has_external_inputs
    assert base.external_inputs(BRIEF, ITEM) == "ba"
    assert isinstance(base.resolve_paths(Path("job")), Able)
    assert base.price() is None
