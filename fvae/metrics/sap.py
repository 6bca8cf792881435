"""The separated attribute predictability score."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics import linear_svm
from fvae.metrics.factors import Labels
from fvae.metrics.protocols import SAP, SapProtocol
from fvae.metrics.samples import Draw, draw


@dataclass(frozen=True, eq=False)
class SapResult:
    """A separated attribute predictability score.

    Attributes:
        score: mean over factors of the gap between the two best dimensions, 0 to 1.
        accuracy: float64 ``[d, K]``, test accuracy of factor k predicted from dimension j alone;
            of a real-valued factor, R^2.
        protocol: the constants.
        perfect: score of the code whose K dimensions are the factors themselves (of classes, their
            numbers 0 to n_k - 1), from the same images. No ceiling: other spacing can do better.
        note: empty, or what a reader of the score should know.
    """

    score: float
    accuracy: np.ndarray
    protocol: SapProtocol
    perfect: float
    note: str


@as_imported()
def sap_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> SapResult:
    """SAP = mean over factors k of (greatest - second greatest accuracy[j, k] over j).

    accuracy[j, k] is the test accuracy of a linear support vector machine that predicts factor k
    from dimension j alone: LinearSVC(C=0.01, class_weight="balanced") of the protocol, solved
    exactly (:mod:`fvae.metrics.linear_svm`). A factor of many classes is hard for a linear machine
    on one feature and keeps even a perfect code well below 1. Of a real-valued factor accuracy[j,
    k] is R^2 of a linear regression on dimension j, the squared correlation in the training
    sample. With one dimension the second greatest is 0.

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
        A :class:`SapResult`.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Kumar et al. 2018, R^2 too; classifier and samples of Locatello et al. 2019.
    """
    train, test = draw(codes, factor_sizes, factors, seed, SAP.train_samples, SAP.test_samples)
    accuracy = _accuracy(train, test)
    perfect = _gap(_accuracy(*(replace(s, codes=s.labelled) for s in (train, test))))
    note = f"the factors themselves score {perfect:.3f}" if perfect < 0.9995 else ""
    return SapResult(_gap(accuracy), accuracy, SAP, perfect, note)


def _accuracy(train: Draw, test: Draw) -> np.ndarray:
    """Accuracy or R^2, [d, K], of each factor predicted from each dimension alone."""

    def one(x: np.ndarray, x_test: np.ndarray, k: int) -> float:
        if not train.sizes[k]:
            return _squared_correlation(x, train.labels[k])
        predicted = linear_svm.fit_predict(x, train.labels[k], x_test, SAP.penalty)
        return float((predicted == test.labels[k]).mean())

    pairs = zip(train.codes.T, test.codes.T, strict=True)
    return np.array([[one(*pair, k) for k in range(len(train.labels))] for pair in pairs])


def _gap(accuracy: np.ndarray) -> float:
    """Mean over factors of the gap between the two best dimensions; of one, the other is 0."""
    ranked = np.sort(np.vstack((accuracy, np.zeros(accuracy.shape[1]))), axis=0)
    return float((ranked[-1] - ranked[-2]).mean())


def _squared_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """R^2 of the line from x to y; 0 where x is constant."""
    if not x.max() > x.min():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) ** 2 / ((x @ x) * (y @ y)))
