"""The beta-VAE metric: can a linear classifier see which factor a set of pairs shares?"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fvae import ops
from fvae.device import as_imported
from fvae.metrics.checks import codes_of, require_finite, seed_of
from fvae.metrics.factors import Factors, Labels, factors_of
from fvae.metrics.protocols import BETA_VAE, BetaVaeProtocol, lookup
from fvae.metrics.resampling import IMAGES_TIMES, generator
from fvae.metrics.sampling import EVAL_LANE, TRAIN_LANE, beta_vae_rows
from fvae.philox import Philox


@dataclass(frozen=True)
class BetaVaeResult:
    """A beta-VAE score.

    Attributes:
        score: accuracy of the linear classifier, 0 to 1, on the evaluation points where the
            protocol has them (locatello2019), else on the training points. Chance is about 1 / K.
        train_score: accuracy on the training points.
        protocol: the constants; its ``name`` says which.
        note: empty, or what a reader of the score should know.
    """

    score: float
    train_score: float
    protocol: BetaVaeProtocol
    note: str = ""


@as_imported()
def beta_vae_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    protocol: str = "kim2018",
    seed: int = 0,
    *,
    factors: Labels | None = None,
    backend: str | None = None,
) -> BetaVaeResult:
    """Score = accuracy of a linear classifier from ``x_j = mean over pairs |z1_j - z2_j|`` to k.

    A point fixes factor k. Each of its L pairs draws a value of k, which both images share, and
    all else of both images at random: of labels, the value of a row drawn at random, and two of
    the rows that have it.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: of a full grid, K sizes, each at least 2, whose product is N; row i of the
            codes then has the mixed-radix digits of i as factor classes, the last factor fastest.
        protocol: "kim2018" (features standardised, SGDClassifier with log loss, the training
            points score it) or "locatello2019" (LogisticRegression on the features as they are,
            other points score it), a name in :data:`fvae.metrics.BETA_VAE`.
        seed: key of the draws.
        factors: of any rows, in place of the sizes: labels ``[N, K]`` (or ``[N]``) of the codes'
            rows, or a :class:`fvae.metrics.Factors`, which says what is a class and what is
            real-valued.
        backend: of :func:`fvae.ops.pair_features`; None picks.

    Returns:
        A :class:`BetaVaeResult`.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, a code that is read is not
            finite, the protocol does not exist, or a factor is real-valued or has a value that
            one row only has.

    Source: Higgins et al. 2017, section 3; "kim2018": Kim & Mnih 2018, appendix;
    "locatello2019": Locatello et al. 2019, appendix.
    """
    given = factors_of(factor_sizes, factors, codes)
    codes = codes_of(codes, given)
    constants = lookup(BETA_VAE, "beta_vae", protocol)
    rng = Philox(seed_of(seed), device=codes.device)
    require_finite(codes, lambda: beta_vae_rows(given, constants, rng))
    train, test = _points(codes, given, constants, rng, backend)
    if (train[1] == train[1][0]).all():  # nothing to tell apart, and no classifier takes it
        return BetaVaeResult(1.0, 1.0, constants, "one factor: there is nothing to tell apart")
    train_score, score = _scores(train, test, constants)
    return BetaVaeResult(score, train_score, constants)


def beta_vae_error(
    result: BetaVaeResult, score: Any, codes: Tensor, factors: Factors, seed: int, rows: Tensor
) -> float:
    """Standard error by a bootstrap over the points, with a classifier fitted on each resample.

    A way of :mod:`fvae.metrics.resampling`; where the training points score the classifier, they do
    so here.
    """
    constants, rng = result.protocol, generator(seed)
    sets = _points(codes, factors, constants, Philox(seed, device=codes.device), None)
    if len(factors) == 1:
        return 0.0
    scores = []
    for _ in range(IMAGES_TIMES):
        again = []
        for x, k in sets:
            drawn = rng.integers(len(k), size=len(k))
            again.append((x[drawn], k[drawn]))
        scores.append(_scores(again[0], again[1], constants)[1])
    return float(np.std(scores, ddof=1))


#: Features float64 [points, d], and fixed factors int64 [points].
_Points = tuple[np.ndarray, np.ndarray]


def _points(
    codes: Tensor, factors: Factors, constants: BetaVaeProtocol, rng: Philox, backend: str | None
) -> tuple[_Points, _Points]:
    """Points that train, and points that score, the same where the protocol has no others."""
    groups = factors.groups(codes.device)

    def points(count: int, lane: int) -> _Points:
        features, fixed = ops.pair_features(
            codes, groups, points=count, pairs=constants.pairs, rng=rng.at_lane(lane),
            balanced=constants.balanced, backend=backend,
        )  # fmt: skip
        return features.double().cpu().numpy(), fixed.cpu().numpy()

    train = points(constants.points, TRAIN_LANE)
    return train, points(constants.eval_points, EVAL_LANE) if constants.eval_points else train


def _scores(train: _Points, test: _Points, constants: BetaVaeProtocol) -> tuple[float, float]:
    """Accuracy of a new classifier on the points that train it and on those that test it."""
    from sklearn.exceptions import ConvergenceWarning

    model = _classifier(constants)
    with warnings.catch_warnings():
        # A classifier that stops at max_iter is scored as it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(*train)
    score = float(model.score(*train))
    return score, score if test is train else float(model.score(*test))


def _classifier(constants: BetaVaeProtocol) -> Any:
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if constants.classifier == "sgd":
        model = SGDClassifier(
            loss="log_loss", max_iter=constants.max_iter, random_state=constants.random_state
        )
    else:
        model = LogisticRegression(max_iter=constants.max_iter, random_state=constants.random_state)
    return make_pipeline(StandardScaler(), model) if constants.standardise else model
