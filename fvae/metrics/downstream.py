"""Accuracy of predicting the factors from the codes, and how it grows with the labels."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.factors import Labels
from fvae.metrics.predict import boosted, score_of
from fvae.metrics.protocols import DOWNSTREAM, DownstreamProtocol
from fvae.metrics.samples import Draw, draw


@dataclass(frozen=True, eq=False)
class DownstreamResult:
    """Accuracy downstream.

    Attributes:
        score: mean over factors of the boosted trees' test accuracy with the most labels.
        models: "logistic" and "boosted".
        labels: numbers of labelled images that trained, L of them.
        accuracy: float64 ``[2, L, K]``, of each model and number of labels for each factor; of a
            real-valued factor R^2, at least 0.
        mean: float64 ``[2, L]``, its mean over factors.
        efficiency: float64 ``[2, L - 1]``, mean with few labels over mean with the most; 0 where
            the latter is 0.
        protocol: the constants.
        note: empty, or what a reader of the score should know.
    """

    score: float
    models: tuple[str, ...]
    labels: tuple[int, ...]
    accuracy: np.ndarray
    mean: np.ndarray
    efficiency: np.ndarray
    protocol: DownstreamProtocol
    note: str = ""


@as_imported()
def downstream_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> DownstreamResult:
    """accuracy[m, l, k]: of factor k on 5,000 test images, by model m after l labelled images.

    The models are logistic regression (a linear regression of a real-valued factor) and boosted
    trees (:func:`fvae.ops.boosted_trees`), after 100, 1,000 and 10,000 labels, each set the first
    of the next. The study picks the penalty of its logistic regression by ten-fold
    cross-validation, which takes minutes; here C is 1. Efficiency is mean accuracy with few labels
    over that with the most.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: of a full grid, as :func:`fvae.metrics.dci_score` takes them.
        seed: key of the draws.
        factors: of any rows, in place of the sizes, as there. Of few rows two thirds train, and
            larger numbers of labels are left out.

    Returns:
        A :class:`DownstreamResult`. Chance is the commonest class's share.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Locatello et al. 2019, sample efficiency.
    """
    of = DOWNSTREAM
    train, test = draw(codes, factor_sizes, factors, seed, max(of.labels), of.test_samples)
    labels = tuple(sorted({min(n, len(train.codes)) for n in of.labels}))
    accuracy = np.empty((2, len(labels), len(train.sizes)))
    for i, n in enumerate(labels):
        _, predicted = boosted(train, test, of.stages, of.rate, n)
        for k, truth in enumerate(test.labels):
            accuracy[0, i, k] = score_of(_linear(of, train, test, n, k), truth)
            accuracy[1, i, k] = score_of(predicted[k], truth)
    mean = accuracy.mean(2)
    most = mean[:, -1:]
    return DownstreamResult(
        score=float(mean[1, -1]),
        models=("logistic", "boosted"),
        labels=labels,
        accuracy=accuracy,
        mean=mean,
        efficiency=np.divide(mean[:, :-1], most, out=np.zeros_like(mean[:, :-1]), where=most > 0),
        protocol=of,
        note="" if labels == of.labels else f"{labels[-1]:,} labels at most, for want of rows",
    )


def _linear(of: DownstreamProtocol, train: Draw, test: Draw, rows: int, k: int) -> np.ndarray:
    """What a linear model predicts of factor k, [T]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LinearRegression, LogisticRegression

    x, y = train.codes[:rows], train.labels[k][:rows]
    if (y == y[0]).all():
        return np.full(len(test.codes), y[0])
    if not train.sizes[k]:
        return LinearRegression().fit(x, y).predict(test.codes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=of.penalty, max_iter=of.max_iter).fit(x, y).predict(test.codes)
