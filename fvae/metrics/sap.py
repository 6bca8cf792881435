"""The separated attribute predictability score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics import linear_svm
from fvae.metrics.protocols import SAP, SapProtocol
from fvae.metrics.samples import draw


@dataclass(frozen=True, eq=False)
class SapResult:
    """A separated attribute predictability score.

    Attributes:
        score: mean over factors of the gap between the two best dimensions, 0 to 1.
        accuracy: float64 ``[d, K]``, test accuracy of factor k predicted from dimension j alone.
        protocol: the constants.
    """

    score: float
    accuracy: np.ndarray
    protocol: SapProtocol


@as_imported()
def sap_score(codes: Tensor | np.ndarray, factor_sizes: Sequence[int], seed: int = 0) -> SapResult:
    """SAP = mean over factors k of (greatest - second greatest accuracy[j, k] over j).

    accuracy[j, k] is the test accuracy of a linear support vector machine that predicts factor k
    from dimension j alone: LinearSVC(C=0.01, class_weight="balanced") of the protocol, solved
    exactly (:mod:`fvae.metrics.linear_svm`). Every factor is taken as a set of classes, so one
    with many values is hard for a linear machine on one feature and keeps even a perfect code
    well below 1. With one dimension the second greatest is 0.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point; row i is the code of the image
            whose factor classes are the mixed-radix digits of i, the last factor fastest. Rows
            outside :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: K sizes, each at least 2, whose product is N.
        seed: key of the draws.

    Returns:
        A :class:`SapResult`.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, or a code that is read is not
            finite.

    Source: Kumar et al. 2018; classifier and samples of Locatello et al. 2019.
    """
    train, test = draw(codes, factor_sizes, seed, SAP.train_samples, SAP.test_samples)
    dims, factors = train.codes.shape[1], len(train.sizes)
    accuracy = np.empty((dims, factors))
    for j in range(dims):
        for k in range(factors):
            predicted = linear_svm.fit_predict(
                train.codes[:, j], train.classes[:, k], test.codes[:, j], SAP.penalty
            )
            accuracy[j, k] = (predicted == test.classes[:, k]).mean()
    ranked = np.sort(np.vstack((accuracy, np.zeros(factors))), axis=0)
    return SapResult(float((ranked[-1] - ranked[-2]).mean()), accuracy, SAP)
