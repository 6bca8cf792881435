"""Disentanglement, completeness and informativeness."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.factors import Labels
from fvae.metrics.protocols import DCI, DciProtocol
from fvae.metrics.samples import draw


@dataclass(frozen=True, eq=False)
class DciResult:
    """Disentanglement, completeness and informativeness, each 0 to 1.

    Attributes:
        score: disentanglement: does each dimension matter to one factor only?
        completeness: does each factor need one dimension only?
        informativeness: mean test accuracy of the forests; chance is the mean of 1 / n_k. Of a
            real-valued factor R^2, at least 0, stands for the accuracy.
        importance: float64 ``[d, K]``, importance of dimension j to factor k; a column sums to 1,
            or to 0 where the forest found nothing to split.
        protocol: the constants.
        ceiling: the greatest score of any code of d dimensions: below 1 where d < K, since a
            dimension then has to matter to several factors.
        note: empty, or what a reader of the score should know.
    """

    score: float
    completeness: float
    informativeness: float
    importance: np.ndarray
    protocol: DciProtocol
    ceiling: float = 1.0
    note: str = ""


@as_imported()
def dci_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> DciResult:
    """D = sum_j rho_j (1 - H_K(P_j)), C = mean_k (1 - H_d(P'_k)), I = mean test accuracy.

    R[j, k] is the impurity importance of dimension j in a random forest that predicts factor k
    from all dimensions. P_j is row j of R divided by its sum, H_K its entropy to base K, rho_j
    the row's share of all R; P'_k is column k, H_d its entropy to base d. The forests (all
    dimensions tried at each split) stand in for the boosted trees of Locatello et al. 2019, which
    take minutes, so the numbers are not comparable with theirs. A real-valued factor has a forest
    of regression trees with the same constants.

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

    Returns:
        A :class:`DciResult`. Codes that are all constant score 0, with completeness 0. With one
        factor D is 1, and with one dimension C is 1: there is nothing to confuse.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Eastwood & Williams 2018, with random forests, one of the paper's two regressors.
    """
    train, test = draw(codes, factor_sizes, factors, seed, DCI.train_samples, DCI.test_samples)
    importance = np.empty((train.codes.shape[1], len(train.sizes)))
    accuracy = np.empty(len(train.sizes))
    for k, size in enumerate(train.sizes):
        forest = (RandomForestClassifier if size else RandomForestRegressor)(
            DCI.trees,
            max_features=None,
            min_samples_leaf=DCI.min_samples_leaf,
            random_state=DCI.random_state,
            n_jobs=torch.get_num_threads(),  # the trees are the same for any number
        ).fit(train.codes, train.labels[k])
        importance[:, k] = forest.feature_importances_
        accuracy[k] = _test_score(forest, test.codes, test.labels[k])
    return DciResult(
        score=_one_sided(importance),
        completeness=_one_sided(importance.T),
        informativeness=float(accuracy.mean()),
        importance=importance,
        protocol=DCI,
        ceiling=_ceiling(importance),
        note="one factor: there is none to confuse it with" if len(train.sizes) == 1 else "",
    )


def _test_score(forest: Any, codes: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy, or R^2, which is 0 where the regression is no better than the mean."""
    if labels.dtype.kind == "f" and not labels.max() > labels.min():
        return 0.0
    return max(0.0, float(forest.score(codes, labels)))


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
