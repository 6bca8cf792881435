"""The sampling error of a score: how far it would move, were the model scored with other draws.

Each way is a function ``(result, score, codes, factors, seed, rows)`` that an entry of the registry
names: what the score was, how others are taken, and the rows whose codes there are. It draws from
Philox under the score's seed, with replacement, and no image is encoded for it. Nothing here tells
of other seeds of training, which move a score far more.

Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", chapter 6.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvae.metrics.factors import Factors, Unsuited

#: ``score(codes, factors)``: the score of other rows, with all else as it was.
Score = Callable[[Tensor, Factors], Any]

#: Resamples of the votes, which are counts and cost nothing: the error is known to 2 %.
VOTES_TIMES = 1_000
#: Resamples of images, each of which is scored anew: the error is known to some 16 %.
IMAGES_TIMES = 20


def generator(seed: int) -> np.random.Generator:
    """NumPy's Philox under a seed."""
    return np.random.Generator(np.random.Philox(seed % (1 << 64)))


def of_votes(
    result: Any, score: Score, codes: Tensor, factors: Factors, seed: int, rows: Tensor
) -> float | None:
    """Error of a majority vote: its votes drawn again, its classifier fitted again on each draw.

    As many votes as there were are drawn from those that there were, under a balanced protocol of
    each factor its own number; where the training votes score the classifier, they do so here. That
    all votes share one sample of the global variance is left out.

    Args:
        result: a :class:`fvae.metrics.FactorVaeResult`.
        score: not read.
        codes: not read.
        factors: not read.
        seed: that of the score.
        rows: not read.

    Returns:
        the standard error; 0 where nothing was drawn, None where there was no vote.
    """
    if result.protocol.votes is None:
        return 0.0
    if not result.votes.any():
        return None
    rng, balanced = generator(seed), result.protocol.balanced
    train = _votes_again(result.votes.numpy(), balanced, rng)
    scored = train
    if result.eval_votes is not None:
        scored = _votes_again(result.eval_votes.numpy(), balanced, rng)
    predicted = train.argmax(2)[..., None]
    right = np.take_along_axis(scored, predicted, 2).sum((1, 2))
    return float((right / scored.sum((1, 2))).std(ddof=1))


def _votes_again(votes: np.ndarray, balanced: bool, rng: np.random.Generator) -> np.ndarray:
    """Resampled votes, int64 [VOTES_TIMES, d, K], of votes [d, K]."""
    # Drawn together, or each factor's column for itself.
    parts = votes.T if balanced else votes.reshape(1, -1)
    drawn = [rng.multinomial(p.sum(), p / max(1, p.sum()), VOTES_TIMES) for p in parts]
    together = np.stack(drawn, axis=-1)
    return together.reshape(VOTES_TIMES, *votes.shape)


def of_images(count: int, test: int = 0, labelled: bool = True) -> Callable[..., float | None]:
    """Error of a score of a sample of images: drawn again from those encoded, and scored again.

    That is a bootstrap where the images that the score reads are all that were encoded, and close
    to the scores of other seeds where there are many more, as beside the votes. Of labels, which
    are drawn without replacement, n of N rows, it is shrunk by sqrt(1 - n / N).

    Args:
        count: images that the score draws.
        test: further images that it draws, where they do not enter the score itself.
        labelled: whether the score asks for factors.

    Returns:
        a way as this module has them: the standard error; 0 where the score reads every row, None
        where a redrawn sample cannot be scored.
    """

    def error(
        result: Any, score: Score, codes: Tensor, factors: Factors, seed: int, rows: Tensor
    ) -> float | None:
        total, size = factors.rows, count + test
        if not labelled:
            factors = Factors.unknown(total)
        if total <= count and (factors.columns or not labelled):
            return 0.0
        share = 0.0
        if factors.columns:
            share = min(count, -(-2 * total // 3) if test else total) / total
            size = min(size, total)
        scores = []
        for drawn in generator(seed).integers(len(rows), size=(IMAGES_TIMES, size)):
            again = rows[torch.from_numpy(drawn)]
            try:
                scores.append(score(codes[again], factors.take(again)).score)
            except Unsuited:
                return None
        return float(np.std(scores, ddof=1) * np.sqrt(1 - share))

    return error
