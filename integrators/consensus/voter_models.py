"""Probabilistic models of voters for the method `auto`, and the test of whether any is needed.

Where voters don't demonstrably differ, nothing can be learned about them and the majority stands. Where they do, the
label with the highest mean probability under three models wins. The models differ in how a voter may err, and their
mean is more often right than any one of them:

- One coin: a voter is right with a probability of its own, and errs evenly.
- Spammer (MACE; Hovy, Berg-Kirkpatrick, Vaswani and Hovy, Learning Whom to Trust with MACE, NAACL 2013): a voter
  knows the label with a probability of its own, and otherwise answers from a distribution of its own.
- Confusion matrix (Dawid and Skene 1979; as a Bayesian model Kim and Ghahramani, Bayesian Classifier Combination,
  AISTATS 2012): a voter has a distribution of answers for each right label.

All are fitted by variational Bayes from the majority (Simpson, Roberts, Psorakis and Smith, Dynamic Bayesian
Combination of Multiple Imperfect Classifiers, 2013), in which a voter with few votes counts less for its uncertainty.
Each voter's prior is centred on what all voters do together (partial pooling; Paun et al., Comparing Bayesian Models
of Annotation, TACL 2018). crowd-kit has the models without such priors; with two votes for each voter, they
are worse than the majority.

Labels are numbered in the order of their first vote, by item and voter, and probabilities are rounded in each
iteration, so that neither the name of a label nor the order of a sum decides.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.integrators.crowdkit_adapter import CrowdEstimates, encode_votes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.integrators.crowdkit_adapter import Vote

Array = Any
"""An array of numpy, which is optional and imported only where it is needed."""

MIN_VOTERS = 3
"""Fewest voters among whom a model can determine who errs: of two who disagree, either may."""
MIN_DIFFERENCE = 1.645
"""Standard deviations by which voters must differ more than by chance: the 5 % level, one-sided."""
MAX_CELLS = 2_000_000
"""Most cells of an array. With more labels than that, as of free text, the one-coin model is fitted alone."""
ITERATIONS, TOLERANCE = 100, 1e-4
"""Most iterations of a fit, and the change of every probability below which it has converged."""
_DECIMALS = 12
"""Decimals of probabilities: coarser than the error of a sum, so that equal labels stay equal in all iterations."""
_SMALLEST = 1e-300
"""Probability in place of 0, which has no logarithm."""

# Priors, in votes. Any prior of a few votes that is centred on all voters will do; `benchmarks/consensus.py`
# measures these.
POOLED_VOTES = 4.0
"""Weight of the mean skill of all voters in the skill of one."""
OWN_VOTES = 0.5
"""Weight of either result, right or wrong, in a voter's skill, independent of all others."""
SPAM_POOLED, SPAM_OWN = 1.0, 0.1
"""Weights of the answers of all spammers, and of each label, in the answers of one spammer."""
MATRIX_POOLED, MATRIX_RIGHT, MATRIX_WRONG = 2.0, 1.0, 0.5
"""Weights of the confusion of all voters, of the right label, and of all wrong ones in a row of a confusion matrix."""


class EncodedVotes(NamedTuple):
    """Votes as numbers, sorted by item and voter, with the counts of what they number."""

    item: Array
    voter: Array
    label: Array
    items: int
    voters: int
    labels: int
    choices: int
    """Number of labels that a voter chooses from; `labels` may be fewer if they are numbered for each item."""
    are_labels_shared: bool = True
    """Whether a label's number means the same for all items."""


def estimate_truth(votes: Sequence[Vote]) -> CrowdEstimates | None:
    """Return the mean of the models' estimates; None if the majority should decide, as voters don't differ enough.

    Needs the extra `consensus`.

    Args:
        votes: The votes in any order, at most one for each item and agent.
    """
    items, agents, opinions, codes = encode_votes(votes)
    encoded = to_arrays(codes, len(items), len(agents), len(opinions))
    if encoded.voters < MIN_VOTERS or measure_differences(encoded) <= MIN_DIFFERENCE:
        return None
    models = [fit_one_coin(encoded)]
    if encoded.are_labels_shared:
        models += [fit_spammers(encoded), fit_confusion(encoded)]
    mean: Array = sum(models) / len(models)
    given = mean[encoded.item, encoded.label]  # the probability of each vote's label
    scores: dict[str, dict[str, float]] = {item: {} for item in items}
    for (item, _, opinion), probability in zip(codes, given.tolist(), strict=True):
        scores[items[item]][opinions[opinion]] = probability
    numpy = _numpy()
    right = numpy.bincount(encoded.voter, weights=given) / numpy.bincount(encoded.voter)
    return CrowdEstimates(scores, dict(zip(agents, right.tolist(), strict=True)), {})


def to_arrays(codes: Sequence[tuple[int, int, int]], items: int, voters: int, labels: int) -> EncodedVotes:
    """Return votes as arrays; with too many labels for the models, these are numbered for each item by themselves."""
    item, voter, label = _numpy().array(codes).T
    if max(items * labels, voters * labels * labels) <= MAX_CELLS:
        return EncodedVotes(item, voter, label, items, voters, labels, labels)
    local: dict[tuple[int, int], int] = {}
    counts = [0] * items
    for at, _, opinion in codes:
        if (at, opinion) not in local:
            local[at, opinion] = counts[at]
            counts[at] += 1
    label = _numpy().array([local[at, opinion] for at, _, opinion in codes])
    return EncodedVotes(item, voter, label, items, voters, max(counts), labels, are_labels_shared=False)


def measure_differences(votes: EncodedVotes) -> float:
    """Return by how many standard deviations the voters differ more than by chance.

    A vote is compared with the majority of the other votes on its item. If all voters were alike, their agreement
    would vary by chance alone; then, the sum of the products of any two votes' deviations, of one voter, has the mean 0
    and a known variance. This is measured for voters, and for voters by the majority's label, of which the greater
    difference counts: a voter who prefers a label may agree as often as all others.
    """
    numpy = _numpy()
    # 1. The majority of the other votes on the item of each vote; votes without one are left out.
    counts = numpy.zeros((votes.items, votes.labels))
    numpy.add.at(counts, (votes.item, votes.label), 1.0)
    others = counts[votes.item]
    others[numpy.arange(len(votes.item)), votes.label] -= 1.0
    most = others.max(axis=1)
    is_clear = (most > 0) & ((others == most[:, None]).sum(axis=1) == 1)
    majority, voter = others.argmax(axis=1)[is_clear], votes.voter[is_clear]
    # 2. How much more or less each vote agrees than is usual for its majority's label.
    agrees = (votes.label[is_clear] == majority).astype(float)
    group = majority if votes.are_labels_shared else numpy.zeros_like(majority)
    usual = (numpy.bincount(group, weights=agrees) / numpy.maximum(numpy.bincount(group), 1))[group]
    deviation, variance = agrees - usual, usual * (1 - usual)

    # 3. The sum of products over pairs of votes, by its standard deviation.
    def measure(cell: Array) -> float:
        products = numpy.bincount(cell, weights=deviation) ** 2 - numpy.bincount(cell, weights=deviation**2)
        variances = numpy.bincount(cell, weights=variance) ** 2 - numpy.bincount(cell, weights=variance**2)
        spread = 2 * float(variances.sum())
        return float(products.sum()) / spread**0.5 if spread > 0 else 0.0

    return max(measure(voter), measure(voter * votes.labels + group))


def fit_one_coin(votes: EncodedVotes) -> Array:
    """Return the probability of each label of each item under the one-coin model, labels being equally frequent."""
    numpy, digamma = _numpy(), _digamma()
    answered = numpy.bincount(votes.voter, minlength=votes.voters)
    truth = _count_shares(votes)
    for _ in range(ITERATIONS):
        right = numpy.bincount(votes.voter, weights=truth[votes.item, votes.label], minlength=votes.voters)
        mean = (right.sum() + 1) / (answered.sum() + 2)
        good = digamma(right + OWN_VOTES + POOLED_VOTES * mean)
        bad = digamma(answered - right + OWN_VOTES + POOLED_VOTES * (1 - mean))
        evidence = good - bad + numpy.log(max(votes.choices - 1, 1))
        truth, has_converged = _update(truth, _add_to_labels(votes, evidence[votes.voter]))
        if has_converged:
            break
    return truth


def fit_spammers(votes: EncodedVotes) -> Array:
    """Return the probability of each label of each item under the spammer model, labels being equally frequent."""
    numpy, digamma = _numpy(), _digamma()
    answered = numpy.bincount(votes.voter, minlength=votes.voters)
    truth = _count_shares(votes)
    cell = votes.voter * votes.labels + votes.label
    knows = numpy.full(len(votes.item), votes.labels / (votes.labels + 1))  # of a right vote, that it is known
    for _ in range(ITERATIONS):
        # 1. How often each voter knows the label, and what it answers where it doesn't.
        known = truth[votes.item, votes.label] * knows
        skill = numpy.bincount(votes.voter, weights=known, minlength=votes.voters)
        mean = (skill.sum() + 1) / (answered.sum() + 2)
        total = digamma(answered + 2 * OWN_VOTES + POOLED_VOTES)
        know = numpy.exp(digamma(skill + OWN_VOTES + POOLED_VOTES * mean) - total)
        guess = numpy.exp(digamma(answered - skill + OWN_VOTES + POOLED_VOTES * (1 - mean)) - total)
        spam = numpy.bincount(cell, weights=1 - known, minlength=votes.voters * votes.labels)
        spam = spam.reshape(votes.voters, votes.labels)
        pooled = spam.sum(axis=0) + 1
        spam = spam + SPAM_OWN + SPAM_POOLED * pooled / pooled.sum()
        spam = numpy.exp(digamma(spam) - digamma(spam.sum(axis=1, keepdims=True)))
        # 2. The evidence of each vote for its label.
        guessed = numpy.maximum(guess[votes.voter] * spam[votes.voter, votes.label], _SMALLEST)
        evidence = numpy.log(know[votes.voter] + guessed) - numpy.log(guessed)
        knows = know[votes.voter] / (know[votes.voter] + guessed)
        truth, has_converged = _update(truth, _add_to_labels(votes, evidence))
        if has_converged:
            break
    return truth


def fit_confusion(votes: EncodedVotes) -> Array:
    """Return the probability of each label of each item under the model of confusion matrices."""
    numpy, digamma = _numpy(), _digamma()
    truth = _count_shares(votes)
    cell = votes.voter * votes.labels + votes.label
    shape = (votes.voters, votes.labels, votes.labels)  # voter, given label, right label
    prior = numpy.full((votes.labels, votes.labels), MATRIX_WRONG / max(votes.labels - 1, 1))
    numpy.fill_diagonal(prior, MATRIX_RIGHT)
    for _ in range(ITERATIONS):
        counts = _sum_rows(cell, truth[votes.item], votes.voters * votes.labels).reshape(shape)
        pooled = counts.sum(axis=0) + prior
        counts = counts + prior + MATRIX_POOLED * pooled / pooled.sum(axis=0)
        logs = digamma(counts) - digamma(counts.sum(axis=1, keepdims=True))
        frequency = numpy.log(truth.sum(axis=0) + 1)
        evidence = _sum_rows(votes.item, logs[votes.voter, votes.label], votes.items)
        truth, has_converged = _update(truth, evidence + frequency)
        if has_converged:
            break
    return truth


def _count_shares(votes: EncodedVotes) -> Array:
    """Return the share of the votes on each item that each label has."""
    counts = _add_to_labels(votes, _numpy().ones(len(votes.item)))
    return counts / counts.sum(axis=1, keepdims=True)


def _add_to_labels(votes: EncodedVotes, amounts: Array) -> Array:
    """Return for each item and label the sum of an amount of each vote."""
    cells = votes.item * votes.labels + votes.label
    sums = _numpy().bincount(cells, weights=amounts, minlength=votes.items * votes.labels)
    return sums.reshape(votes.items, votes.labels)


def _sum_rows(index: Array, rows: Array, size: int) -> Array:
    """Return the sums of the rows that have the same index."""
    numpy = _numpy()
    return numpy.stack([numpy.bincount(index, weights=column, minlength=size) for column in rows.T], axis=1)


def _update(truth: Array, logs: Array) -> tuple[Array, bool]:
    """Return the probabilities of which logarithms are given up to a constant, and whether they have hardly changed."""
    numpy = _numpy()
    weights = numpy.exp(logs - logs.max(axis=1, keepdims=True))
    updated = numpy.round(weights / weights.sum(axis=1, keepdims=True), _DECIMALS)
    return updated, bool(numpy.abs(updated - truth).max() < TOLERANCE)


def _numpy() -> Any:  # noqa: ANN401 -- a module of a library that is optional
    return import_module("numpy")


def _digamma() -> Any:  # noqa: ANN401 -- a function of a library that is optional
    return import_module("scipy.special").digamma
