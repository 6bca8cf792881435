"""Explicitness: can each value of each factor be read off the code by a linear classifier?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.constants import EXPLICITNESS, ExplicitnessProtocol
from fvae.metrics.factors import Factors, Labels, Unsuited, factors_of
from fvae.metrics.histogram import binned
from fvae.metrics.samples import Draw, draw


@dataclass(frozen=True, eq=False)
class ExplicitnessResult:
    """An explicitness.

    Attributes:
        score: 2 ``auc`` - 1, so that chance is 0 and certainty 1; below 0 at worst.
        auc: mean of ``factors``.
        factors: float64 ``[K]``, mean over the values of a factor of the area under the ROC curve;
            chance is 0.5.
        study_auc: what Locatello et al. 2019 report: the same mean, of probabilities that were
            divided by their sum over the values of the factor. It is greater, as other values'
            classifiers help.
        protocol: the constants.
        perfect: score of the code whose K dimensions are the factors themselves, from the same
            images. No ceiling: a code with a dimension for each value, or a curved one, passes it.
        note: empty, or what a reader of the score should know.
    """

    score: float
    auc: float
    factors: np.ndarray
    study_auc: float
    protocol: ExplicitnessProtocol
    perfect: float
    note: str = ""


@as_imported()
def explicitness_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> ExplicitnessResult:
    """Explicitness = 2 (mean over factors k of mean over values v of AUC_kv) - 1.

    AUC_kv is the area under the ROC curve, over 5,000 test images, of a logistic regression from
    all dimensions that was trained on 10,000 others to tell value v of factor k from the rest: C =
    1, the intercept free, dimensions standardised. A real-valued factor is cut into 20 bins of
    equal width. A value between others is not linearly separable on one dimension, and this keeps
    even a perfect code of ordered factors well below 1.

    The samples are 10,000 images to train and 5,000 to test: of a grid drawn with replacement, of
    labels disjoint, and fewer where there are fewer (two thirds to train). A value that the test
    images, or those that train, have not is left out.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: of a full grid, K sizes, each at least 2, whose product is N; row i of the
            codes then has the mixed-radix digits of i as factor classes, the last factor fastest.
        seed: key of the draw.
        factors: of any rows, in place of the sizes: labels ``[N, K]`` (or ``[N]``) of the codes'
            rows, or a :class:`fvae.metrics.Factors`, which says what is a class and what is
            real-valued.

    Returns:
        An :class:`ExplicitnessResult`. Codes that are all constant score 0.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Ridgeway & Mozer 2018, section 3; samples of Locatello et al. 2019.
    """
    constants = EXPLICITNESS
    given = factors_of(factor_sizes, factors, codes)
    train, test = draw(codes, None, given, seed, constants.train_samples, constants.test_samples)
    values = _values(train, test, given)
    areas = _areas(train, test, values)
    itself = [replace(part, codes=part.labelled) for part in (train, test)]
    perfect = float(2 * _areas(itself[0], itself[1], values)[0].mean() - 1)
    auc, study_auc = (float(area) for area in areas.mean(1))
    return ExplicitnessResult(
        score=2 * auc - 1,
        auc=auc,
        factors=areas[0],
        study_auc=study_auc,
        protocol=constants,
        perfect=perfect,
        note=f"the factors themselves score {perfect:.3f}" if perfect < 0.9995 else "",
    )


def _values(train: Draw, test: Draw, factors: Factors) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each factor its classes, bool [v, n] of the training and of the test images.

    Raises:
        Unsuited: the test images do not differ in a factor.
    """
    found = []
    for k, pair in enumerate(zip(train.labels, test.labels, strict=True)):
        both = np.concatenate(pair)
        v = both if train.sizes[k] else binned(both, EXPLICITNESS.bins)
        sides = v[: len(pair[0])], v[len(pair[0]) :]
        mine, others = (side == np.unique(v)[:, None] for side in sides)
        kept = mine.any(1) & others.any(1) & ~others.all(1)
        if not kept.any():
            raise Unsuited(
                f"factors: {factors.name(k)} has no value that both some of the"
                f" {len(sides[0]):,} rows that train and some, but not all, of the"
                f" {len(sides[1]):,} rows that test have; leave it out, or give more rows"
            )
        found.append((mine[kept], others[kept]))
    return found


def _areas(train: Draw, test: Draw, values: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Mean area under the ROC curve of each factor, of scores and of shares, [2, K]."""
    from scipy.special import expit
    from sklearn.linear_model import LogisticRegression

    mean, std = train.codes.mean(0), train.codes.std(0)
    std[train.codes.max(0) == train.codes.min(0)] = np.inf  # tells nothing
    x, x_test = ((part.codes - mean) / std for part in (train, test))
    result = np.empty((2, len(values)))
    for k, (mine, others) in enumerate(values):
        scores = np.empty(others.shape)
        for v, wanted in enumerate(mine):
            # Newton's method: a few steps over so few parameters, and no stopping tolerance to see.
            model = LogisticRegression(
                C=EXPLICITNESS.penalty, solver="newton-cholesky", max_iter=EXPLICITNESS.max_iter
            )
            scores[v] = model.fit(x, wanted).decision_function(x_test)
        chance = expit(scores)
        shares = chance / np.maximum(chance.sum(0), np.finfo(np.float64).tiny)
        result[:, k] = _area(scores, others).mean(), _area(shares, others).mean()
    return result


def _area(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Share of pairs of a positive and a negative that are in order, ties half: [v] of [v, n]."""
    from scipy.stats import rankdata

    count = positive.sum(1)
    ranks = (rankdata(scores, axis=1) * positive).sum(1) - count * (count + 1) / 2
    return ranks / (count * (positive.shape[1] - count))
