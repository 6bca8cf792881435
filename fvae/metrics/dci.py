"""Disentanglement, completeness and informativeness."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.factors import Labels
from fvae.metrics.predict import boosted, lasso, score_of
from fvae.metrics.protocols import (
    DCI_PROTOCOLS,
    BoostedDciProtocol,
    DciProtocol,
    LinearDciProtocol,
    lookup,
)
from fvae.metrics.samples import Draw, draw


@dataclass(frozen=True, eq=False)
class DciResult:
    """Disentanglement, completeness and informativeness, each 0 to 1.

    Attributes:
        score: disentanglement: does each dimension matter to one factor only?
        completeness: does each factor need one dimension only?
        informativeness: mean test accuracy of the trees; chance is the mean of 1 / n_k. Of a
            real-valued factor R^2, at least 0, stands for the accuracy. Under "linear" 1 less the
            mean error, that of a guess of the mean being 1.
        importance: float64 ``[d, K]``, importance of dimension j to factor k; a column sums to 1,
            or to 0 where nothing was learnt. Under "linear" the sizes of the weights.
        protocol: the constants.
        ceiling: the greatest score of any code of d dimensions: below 1 where d < K, since a
            dimension then has to matter to several factors.
        note: empty, or what a reader of the score should know.
    """

    score: float
    completeness: float
    informativeness: float
    importance: np.ndarray
    protocol: DciProtocol | BoostedDciProtocol | LinearDciProtocol
    ceiling: float = 1.0
    note: str = ""


@as_imported()
def dci_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
    protocol: str = "forest",
) -> DciResult:
    """D = sum_j rho_j (1 - H_K(P_j)), C = sum_k rho'_k (1 - H_d(P'_k)), I = mean test accuracy.

    R[j, k] is the importance of dimension j to factor k, which is predicted from all dimensions.
    P_j is row j of R divided by its sum, H_K its entropy to base K, rho_j the row's share of all
    R; P'_k is column k, H_d its entropy to base d, rho'_k its share. What predicts:

    - "forest": a random forest (all dimensions tried at each split), R its impurity importance.
    - "locatello2019": boosted trees (:func:`fvae.ops.boosted_trees`), R likewise, as that study
      has them.
    - "linear": L1 regression of the factor's value (a class is its number), standardised, on the
      standardised codes; R is the size of the weights, I = mean over factors of 1 - min(1, root
      mean squared error on test images in units of the training sample's deviation).

    Numbers of different protocols are not comparable. A real-valued factor has regression trees
    with the same constants.

    The samples are 10,000 images to train and 5,000 to test: of a grid drawn with replacement, of
    labels disjoint, and fewer where there are fewer (two thirds to train).

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: of a full grid, K sizes, each at least 2, whose product is N; row i of the
            codes then has the mixed-radix digits of i as factor classes, the last factor fastest.
        seed: key of the draws.
        factors: of any rows, in place of the sizes: labels ``[N, K]`` (or ``[N]``) of the codes'
            rows, or a :class:`fvae.metrics.Factors`, which says what is a class and what is
            real-valued.
        protocol: a name in :data:`fvae.metrics.DCI_PROTOCOLS`.

    Returns:
        A :class:`DciResult`. Codes that are all constant score 0, with completeness 0. With one
        factor D is 1, and with one dimension C is 1: there is nothing to confuse.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, a factor has too few rows a value, or there is no such protocol.

    Source: Eastwood & Williams 2018, whose regressors are the lasso and random forests; Locatello
    et al. 2019.
    """
    of = lookup(DCI_PROTOCOLS, "dci", protocol)
    train, test = draw(codes, factor_sizes, factors, seed, of.train_samples, of.test_samples)
    if isinstance(of, DciProtocol):
        importance, informed = _forests(of, train, test)
    elif isinstance(of, BoostedDciProtocol):
        importance, predicted = boosted(train, test, of.stages, of.rate)
        informed = np.array(list(map(score_of, predicted, test.labels)))
    else:
        importance, informed = _lasso(of, train, test)
    return DciResult(
        score=_one_sided(importance),
        completeness=_one_sided(importance.T),
        informativeness=float(informed.mean()),
        importance=importance,
        protocol=of,
        ceiling=_ceiling(importance) if protocol != "linear" else 1.0,
        note="one factor: there is none to confuse it with" if len(train.sizes) == 1 else "",
    )


def _forests(of: DciProtocol, train: Draw, test: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Importance [d, K] and test score [K] of a forest for each factor."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    importance = np.empty((train.codes.shape[1], len(train.sizes)))
    informed = np.empty(len(train.sizes))
    for k, size in enumerate(train.sizes):
        forest: Any = (RandomForestClassifier if size else RandomForestRegressor)(
            of.trees,
            max_features=None,
            min_samples_leaf=of.min_samples_leaf,
            random_state=of.random_state,
            n_jobs=torch.get_num_threads(),  # the trees are the same for any number
        ).fit(train.codes, train.labels[k])
        importance[:, k] = forest.feature_importances_
        informed[k] = score_of(forest.predict(test.codes), test.labels[k])
    return importance, informed


def _lasso(of: LinearDciProtocol, train: Draw, test: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the weights [d, K], and 1 - error [K], of an L1 regression for each factor."""
    (x, unseen), (y, labels) = (
        _standardised(a.astype(float), b.astype(float))
        for a, b in ((train.codes, test.codes), (train.labelled, test.labelled))
    )
    models = [lasso(x, column, of.penalty) for column in y.T]
    predicted = np.stack([model.predict(unseen) for model in models], axis=1)
    errors = np.sqrt(((predicted - labels) ** 2).mean(0))
    weights = np.stack([np.abs(m.coef_) for m in models], axis=1)
    return weights, 1 - np.minimum(1, errors)


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in units of the first's deviation from its mean; a constant column is 0."""
    varies = train.max(0) > train.min(0)
    mean, scale = train.mean(0), np.where(varies, train.std(0), 1)
    first, second = (np.where(varies, (x - mean) / scale, 0) for x in (train, test))
    return first, second


def _ceiling(importance: np.ndarray) -> float:
    """Greatest disentanglement of d dimensions, of the factors that a forest learnt anything of.

    Each such factor spreads a share of 1 over the rows. The mean entropy of the rows is least
    where no factor is shared and the rows have as equal numbers of factors as possible.
    """
    dims, factors = len(importance), importance.shape[1]
    learnt = int(importance.any(0).sum())
    if factors == 1 or not learnt:
        return 1.0
    each = np.array([len(part) for part in np.array_split(np.arange(learnt), dims)])
    return float(1 - (each * np.log(np.maximum(each, 1))).sum() / learnt / np.log(factors))


def _one_sided(importance: np.ndarray) -> float:
    """Sum over rows of the row's share of the total times 1 - its entropy to base columns."""
    row = importance.sum(1, keepdims=True)
    if not row.any():
        return 0.0
    p = np.divide(importance, row, out=np.zeros_like(importance), where=row > 0)
    entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)
    if importance.shape[1] > 1:
        entropy = entropy / np.log(importance.shape[1])
    return float(((1 - entropy) * row[:, 0]).sum() / row.sum())
