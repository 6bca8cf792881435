"""Disentanglement, completeness and informativeness."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.protocols import DCI, DciProtocol
from fvae.metrics.samples import draw


@dataclass(frozen=True, eq=False)
class DciResult:
    """Disentanglement, completeness and informativeness, each 0 to 1.

    Attributes:
        score: disentanglement: does each dimension matter to one factor only?
        completeness: does each factor need one dimension only?
        informativeness: mean test accuracy of the forests; chance is the mean of 1 / n_k.
        importance: float64 ``[d, K]``, importance of dimension j to factor k; a column sums to 1.
        protocol: the constants.
    """

    score: float
    completeness: float
    informativeness: float
    importance: np.ndarray
    protocol: DciProtocol


@as_imported()
def dci_score(codes: Tensor | np.ndarray, factor_sizes: Sequence[int], seed: int = 0) -> DciResult:
    """D = sum_j rho_j (1 - H_K(P_j)), C = mean_k (1 - H_d(P'_k)), I = mean test accuracy.

    R[j, k] is the impurity importance of dimension j in a random forest that predicts factor k
    from all dimensions. P_j is row j of R divided by its sum, H_K its entropy to base K, rho_j
    the row's share of all R; P'_k is column k, H_d its entropy to base d. The forests (all
    dimensions tried at each split) stand in for the boosted trees of Locatello et al. 2019, which
    take minutes, so the numbers are not comparable with theirs.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point; row i is the code of the image
            whose factor classes are the mixed-radix digits of i, the last factor fastest. Rows
            outside :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: K sizes, each at least 2, whose product is N.
        seed: key of the draws.

    Returns:
        A :class:`DciResult`. Codes that are all constant score 0, with completeness 0. With one
        factor D is 1, and with one dimension C is 1: there is nothing to confuse.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, or a code that is read is not
            finite.

    Source: Eastwood & Williams 2018, with random forests, one of the paper's two regressors.
    """
    train, test = draw(codes, factor_sizes, seed, DCI.train_samples, DCI.test_samples)
    importance = np.empty((train.codes.shape[1], len(train.sizes)))
    accuracy = np.empty(len(train.sizes))
    for k in range(len(train.sizes)):
        forest = RandomForestClassifier(
            DCI.trees,
            max_features=None,
            min_samples_leaf=DCI.min_samples_leaf,
            random_state=DCI.random_state,
            n_jobs=torch.get_num_threads(),  # the trees are the same for any number
        ).fit(train.codes, train.classes[:, k])
        importance[:, k] = forest.feature_importances_
        accuracy[k] = forest.score(test.codes, test.classes[:, k])
    return DciResult(
        score=_one_sided(importance),
        completeness=_one_sided(importance.T),
        informativeness=float(accuracy.mean()),
        importance=importance,
        protocol=DCI,
    )


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
