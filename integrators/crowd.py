"""Who of several agents is how reliable, and what follows for their answers: by crowd-kit, loaded only where needed."""

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
"""Where crowd-kit's EM stops: at so many rounds, or once the bound on the log-likelihood of a vote gains less."""


class Vote(NamedTuple):
    """One agent's opinion about one item."""

    item: str
    agent: str
    opinion: str


class Crowd(NamedTuple):
    """What a model of the agents says."""

    scores: Mapping[str, Mapping[str, float]]
    """For each item the score of each opinion; its probability, where the model has one."""
    skills: Mapping[str, float]
    """How often each agent is right, as the model has it."""
    confusion: Mapping[tuple[str, str, str], float]
    """For each agent, opinion that is right and opinion that it holds then: how probable that is."""
    rounds: int = 0
    """How many rounds it took; none where it is no matter of rounds."""


def require_crowd_kit(what: str) -> None:
    """Check that crowd-kit is installed.

    Args:
        what: What needs it, as a message names it.

    Raises:
        JobError: If it isn't; the message says how to get it.
    """
    if find_spec("crowdkit") is None:
        raise JobError(f"{what} needs crowd-kit, which isn't installed: pip install 'prefect-dispatch[consensus]'.")


def dawid_skene(votes: Sequence[Vote]) -> Crowd:
    """Return what the model of Dawid and Skene (1979) makes of some votes.

    Each agent has its own probability of saying one thing where another is right. These, and what
    is right, are estimated in turn, from the majority on, until nothing changes any more (EM).

    Args:
        votes: The votes in any order, one for each item and agent at most.
    """
    table = _Table(votes)
    with warnings.catch_warnings():  # crowd-kit uses what pandas is about to drop
        warnings.simplefilter("ignore")
        model = _load("dawid_skene", "DawidSkene")(n_iter=ITERATIONS, tol=TOLERANCE).fit(table.frame)
    priors = [float(model.priors_.get(code, 0.0)) for code in range(len(table.opinions))]
    confusion: dict[tuple[str, str, str], float] = {
        (table.agents[agent], table.opinions[right], table.opinions[said]): float(share)
        for (agent, said), row in zip(model.errors_.index, model.errors_.to_numpy().tolist(), strict=True)
        for right, share in zip(map(int, model.errors_.columns), row, strict=True)
    }
    ones = list(zip(priors, table.opinions, strict=True))
    skills = {
        agent: math.fsum(prior * confusion.get((agent, one, one), 0.0) for prior, one in ones) for agent in table.agents
    }
    return Crowd(table.scores(model.probas_), skills, confusion, len(model.loss_history_))


def wawa(votes: Sequence[Vote]) -> Crowd:
    """Return the votes weighted by how often each agent agrees with the majority (worker agreement with aggregate).

    Args:
        votes: The votes in any order, one for each item and agent at most.
    """
    table = _Table(votes)
    with warnings.catch_warnings():  # crowd-kit uses what pandas is about to drop
        warnings.simplefilter("ignore")
        # Not `predict`: that asks scikit-learn for something which its present releases no longer have.
        skills = _load("wawa", "Wawa")().fit(table.frame).skills_
        weighted = _load("majority_vote", "MajorityVote")().fit(table.frame, skills)
    named = {agent: float(skills.get(code, 0.0)) for code, agent in enumerate(table.agents)}
    return Crowd(table.scores(weighted.probas_), named, {})


class _Table:
    """Votes as crowd-kit takes them: in one order, and numbered, so that no name can mean something to pandas."""

    def __init__(self, votes: Sequence[Vote]) -> None:
        ordered = sorted(votes)
        self.items, self.agents, self.opinions = (sorted({vote[part] for vote in ordered}) for part in range(3))
        names = (self.items, self.agents, self.opinions)
        items, agents, opinions = ({name: code for code, name in enumerate(each)} for each in names)
        rows = [(items[vote.item], agents[vote.agent], opinions[vote.opinion]) for vote in ordered]
        self.frame: Any = import_module("pandas").DataFrame(rows, columns=["task", "worker", "label"])

    def scores(self, found: Any) -> dict[str, dict[str, float]]:  # noqa: ANN401 -- a data frame, which has no types here
        columns = [self.opinions[int(code)] for code in found.columns]
        return {
            self.items[int(code)]: dict(zip(columns, map(float, row), strict=True))
            for code, row in zip(found.index, found.to_numpy().tolist(), strict=True)
        }


def _load(module: str, name: str) -> Any:  # noqa: ANN401 -- a class of a library that is optional
    return getattr(import_module(f"crowdkit.aggregation.classification.{module}"), name)
