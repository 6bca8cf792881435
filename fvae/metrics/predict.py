"""What the metrics predict factors with, and how well that went."""

import warnings
from typing import Any

import numpy as np
import torch

from fvae import ops
from fvae.errors import UserError
from fvae.metrics.samples import Draw


def boosted(
    train: Draw, test: Draw, stages: int, rate: float, rows: int | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Importance of the dimensions in boosted trees, and what they predict.

    Args:
        train: the training sample.
        test: the test sample.
        stages: trees a class.
        rate: learning rate.
        rows: how many of the training sample are used; None is all.

    Returns:
        float64 ``[d, K]``, whose columns sum to 1 or 0, and of each factor the labels ``[T]``.

    Raises:
        UserError: a code is too large for float32, which the trees take.
    """
    codes, unseen = torch.from_numpy(train.codes[:rows]), torch.from_numpy(test.codes)
    for x in (codes, unseen):
        if not x.float().isfinite().all():
            raise UserError("codes: some are beyond float32, which trees take; scale them down")
    importance, predicted = ops.boosted_trees(
        codes,
        torch.from_numpy(train.labelled[:rows].T.copy()),
        [not size for size in train.sizes],
        unseen,
        stages=stages,
        rate=rate,
    )
    return importance.numpy().T, list(predicted.numpy())


# Of Lasso regressions: cheap, d^2 products each, and many where dimensions tell nearly the same.
_DESCENTS = 100_000


def lasso(x: np.ndarray, y: np.ndarray, penalty: float) -> Any:
    """scikit-learn's Lasso with an intercept, fitted: ``|y - x w - c|^2 / 2N + penalty |w|_1``.

    Args:
        x: codes, ``[N, d]``.
        y: targets, ``[N]`` or ``[N, e]``.
        penalty: of the weights.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    model = Lasso(penalty, precompute=True, max_iter=_DESCENTS)
    with warnings.catch_warnings():
        # Dimensions that are the same share a weight in one way or another.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def score_of(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy, or R^2, which is 0 where the regression is no better than the mean."""
    if labels.dtype.kind != "f":
        return float((predicted == labels).mean())
    total = ((labels - labels.mean()) ** 2).sum()
    return max(0.0, float(1 - ((labels - predicted) ** 2).sum() / total)) if total > 0 else 0.0
