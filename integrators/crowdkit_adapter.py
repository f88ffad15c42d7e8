"""Adapter for crowd-kit: estimates each agent's reliability and weights the answers by it.

crowd-kit is optional and imported only where it is needed.
"""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ITERATIONS = 100
TOLERANCE = 1e-5
"""Limits of crowd-kit's EM: maximum number of iterations, and minimum gain of the log-likelihood bound per vote."""


class Vote(NamedTuple):
    """One agent's opinion about one item."""

    item: str
    agent: str
    opinion: str


class CrowdEstimates(NamedTuple):
    """Estimates of a model of the agents."""

    scores: Mapping[str, Mapping[str, float]]
    """For each item the score of each opinion; its probability, where the model has one."""
    skills: Mapping[str, float]
    """The estimated share of right answers of each agent."""
    confusion: Mapping[tuple[str, str, str], float]
    """The probability of an agent's answer given the right one, by (agent, right opinion, given opinion)."""
    rounds: int = 0
    """The number of EM iterations; 0 for a model without iterations."""


def has_crowd_kit() -> bool:
    """Return whether crowd-kit is installed, and with it numpy and scipy."""
    return find_spec("crowdkit") is not None


def require_crowd_kit(what: str) -> None:
    """Check that crowd-kit is installed.

    Args:
        what: The feature that needs it, as the message names it.

    Raises:
        JobError: If it isn't installed; the message says how to install it.
    """
    if not has_crowd_kit():
        raise JobError(f"{what} needs crowd-kit, which isn't installed: pip install 'prefect-dispatch[consensus]'.")


def dawid_skene(votes: Sequence[Vote]) -> CrowdEstimates:
    """Return the estimates of the model of Dawid and Skene (1979).

    Each agent has its own probability of answering one opinion where another is right. These probabilities and
    the right answers are estimated in turn, starting from the majority, until they converge (EM).

    Args:
        votes: The votes in any order, at most one for each item and agent.
    """
    items, agents, opinions, codes = encode_votes(votes)
    frame = _make_frame(codes)
    with warnings.catch_warnings():  # crowd-kit uses deprecated pandas functions
        warnings.simplefilter("ignore")
        model = _import_aggregator("dawid_skene", "DawidSkene")(n_iter=ITERATIONS, tol=TOLERANCE).fit(frame)
    confusion: dict[tuple[str, str, str], float] = {
        (agents[agent], opinions[truth], opinions[given]): float(share)
        for (agent, given), row in zip(model.errors_.index, model.errors_.to_numpy().tolist(), strict=True)
        for truth, share in zip(map(int, model.errors_.columns), row, strict=True)
    }
    skills = {
        agent: math.fsum(
            float(model.priors_.get(code, 0.0)) * confusion.get((agent, opinion, opinion), 0.0)
            for code, opinion in enumerate(opinions)
        )
        for agent in agents
    }
    return CrowdEstimates(_decode_scores(model.probas_, items, opinions), skills, confusion, len(model.loss_history_))


def wawa(votes: Sequence[Vote]) -> CrowdEstimates:
    """Return the votes weighted by how often each agent agrees with the majority (worker agreement with aggregate).

    Args:
        votes: The votes in any order, at most one for each item and agent.
    """
    items, agents, opinions, codes = encode_votes(votes)
    frame = _make_frame(codes)
    with warnings.catch_warnings():  # crowd-kit uses deprecated pandas functions
        warnings.simplefilter("ignore")
        # Not `predict`: it needs a function that current releases of scikit-learn no longer have.
        skills = _import_aggregator("wawa", "Wawa")().fit(frame).skills_
        weighted = _import_aggregator("majority_vote", "MajorityVote")().fit(frame, skills)
    skill_by_agent = {agent: float(skills.get(code, 0.0)) for code, agent in enumerate(agents)}
    return CrowdEstimates(_decode_scores(weighted.probas_, items, opinions), skill_by_agent, {})


def encode_votes(votes: Sequence[Vote]) -> tuple[list[str], list[str], list[str], list[tuple[int, int, int]]]:
    """Return the items, agents and opinions, and each vote as indices in these lists, sorted by item and agent.

    Items and agents are sorted by name, opinions by their first vote, so that no name of an opinion has an effect.

    Example:
        >>> encode_votes([Vote("2", "a", "no"), Vote("1", "a", "yes"), Vote("1", "b", "no")])
        (['1', '2'], ['a', 'b'], ['yes', 'no'], [(0, 0, 0), (0, 1, 1), (1, 0, 1)])
    """
    ranked = sorted(votes)
    items, agents = (sorted({vote[part] for vote in ranked}) for part in range(2))
    opinions = list(dict.fromkeys(vote.opinion for vote in ranked))
    item_codes, agent_codes, opinion_codes = (
        {name: code for code, name in enumerate(names)} for names in (items, agents, opinions)
    )
    codes = [(item_codes[vote.item], agent_codes[vote.agent], opinion_codes[vote.opinion]) for vote in ranked]
    return items, agents, opinions, codes


def _make_frame(codes: Sequence[tuple[int, int, int]]) -> Any:  # noqa: ANN401 -- a data frame, untyped here
    """Return votes as crowd-kit's input; they are numbers, so that pandas interprets no name."""
    return import_module("pandas").DataFrame(codes, columns=["task", "worker", "label"])


def _decode_scores(frame: Any, items: Sequence[str], opinions: Sequence[str]) -> dict[str, dict[str, float]]:  # noqa: ANN401 -- a data frame, untyped here
    columns = [opinions[int(code)] for code in frame.columns]
    return {
        items[int(code)]: dict(zip(columns, map(float, row), strict=True))
        for code, row in zip(frame.index, frame.to_numpy().tolist(), strict=True)
    }


def _import_aggregator(module: str, name: str) -> Any:  # noqa: ANN401 -- a class of a library that is optional
    return getattr(import_module(f"crowdkit.aggregation.classification.{module}"), name)
