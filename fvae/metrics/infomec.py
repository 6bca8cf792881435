"""InfoMEC: modularity, explicitness and compactness, from continuous codes."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics import nearest
from fvae.metrics.constants import INFOMEC, InfomecProtocol
from fvae.metrics.factors import Labels
from fvae.metrics.histogram import xlogx
from fvae.metrics.samples import Draw, draw


@dataclass(frozen=True, eq=False)
class InfomecResult:
    """InfoM, InfoE and InfoC, each 0 to 1.

    Attributes:
        score: InfoM, modularity: does each dimension know one factor only?
        explicitness: InfoE: are the factors a linear function of the code?
        compactness: InfoC: is each factor in one dimension only?
        information: float64 ``[d, K]``, normalised mutual information of each active dimension and
            factor; 0 of the others.
        active: bool ``[d]``, the dimensions that count for InfoM and InfoC.
        protocol: the constants.
        note: empty, or what a reader of the score should know.
    """

    score: float
    explicitness: float
    compactness: float
    information: np.ndarray
    active: np.ndarray
    protocol: InfomecProtocol
    note: str = ""


@as_imported()
def infomec_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> InfomecResult:
    """InfoM = (mean_j max_k S[j, k] / sum_k S[j, k] - 1 / K) / (1 - 1 / K), over active j.

    InfoC = (mean_k max_j S[j, k] / sum_j S[j, k] - 1 / a) / (1 - 1 / a), a the number of active
    dimensions. S[j, k] = I(z_j; v_k) / H(v_k), of 10,000 images: the nearest-neighbour estimate of
    Ross, k = 10, of a factor of classes. Of a real-valued factor, which the paper does not have,
    there is no entropy to divide by: it is the estimate of Kraskov et al. over the greatest that
    this can be, psi(n) - psi(k). A dimension is active whose range is more than 1/20 of the widest.

    InfoE = mean_k (1 - L_k / log n_k), L_k the log loss, in nats on the images that trained it, of
    a multinomial logistic regression from all dimensions: no penalty, balanced classes, at most 100
    steps, as in the paper's code. Of a real-valued factor it is R^2 of a linear regression.

    Of noise the estimates are 0 or a little more, and InfoM, their shares, may be high: it means
    something where InfoE says that something is known.

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
        An :class:`InfomecResult`. A dimension, or a factor, of which nothing is known has equal
        shares. With one factor InfoM is 1, and with one active dimension InfoC is 1: there is
        nothing to confuse. Codes that are all constant score 0, and the note says so.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, or a factor has too few rows a value.

    Source: Hsu et al. 2023, "Disentanglement via latent quantization", section 4.
    """
    sample, _ = draw(codes, factor_sizes, factors, seed, INFOMEC.samples)
    reach = sample.codes.max(0) - sample.codes.min(0)
    active = reach > reach.max() * INFOMEC.prune
    information = np.zeros((len(active), len(sample.labels)))
    for j in active.nonzero()[0]:
        information[j] = [_information(sample.codes[:, j], *kind) for kind in _kinds(sample)]
    if not active.any():
        note = "no dimension varies"
        return InfomecResult(0.0, 0.0, 0.0, information, active, INFOMEC, note)
    pruned = information[active]
    explicit = [_predicted(sample.codes, *kind) for kind in _kinds(sample)]
    return InfomecResult(
        score=_concentration(pruned),
        explicitness=float(np.mean(explicit)),
        compactness=_concentration(pruned.T),
        information=information,
        active=active,
        protocol=INFOMEC,
        note="one factor: there is none to confuse it with" if len(sample.labels) == 1 else "",
    )


def _kinds(sample: Draw) -> list[tuple[np.ndarray, int]]:
    """Labels of each factor, and its number of values, 0 of a real-valued one."""
    return list(zip(sample.labels, sample.sizes, strict=True))


def _concentration(shares: np.ndarray) -> float:
    """Mean over rows of the greatest share of the row, from 0, all equal, to 1, all in one."""
    columns = shares.shape[1]
    if columns == 1:
        return 1.0
    total, even = shares.sum(1), 1 / columns
    most = np.where(total > 0, shares.max(1) / np.where(total > 0, total, 1.0), even)
    return float((most.mean() - even) / (1 - even))


def _information(column: np.ndarray, labels: np.ndarray, size: int) -> float:
    """Normalised mutual information of a dimension that varies and a factor."""
    random = np.random.RandomState(INFOMEC.random_state)
    x, k = nearest.untied(column, random), INFOMEC.neighbours
    if size:
        entropy = -xlogx(np.bincount(labels) / len(labels)).sum()
        return nearest.with_classes(x, labels, k) / float(entropy)
    most = nearest.greatest(len(x), k)
    return nearest.with_values(x, nearest.untied(labels, random), k) / most if most > 0 else 0.0


def _predicted(codes: np.ndarray, labels: np.ndarray, size: int) -> float:
    """Share of a factor's information that a linear prediction has of it, 0 to 1."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LinearRegression, LogisticRegression

    spread = np.where(codes.max(0) > codes.min(0), codes.std(0), np.inf)
    x = (codes - codes.mean(0)) / spread
    if not size:
        return float(LinearRegression().fit(x, labels).score(x, labels))
    model = LogisticRegression(
        C=np.inf, class_weight="balanced", max_iter=INFOMEC.max_iter, tol=1e-4
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the steps are the protocol's
        model.fit(x, labels)
    given = model.predict_proba(x)[np.arange(len(x)), np.searchsorted(model.classes_, labels)]
    loss = -np.log(np.maximum(given, np.finfo(np.float64).eps)).mean()
    return float(1 - loss / np.log(len(model.classes_)))
