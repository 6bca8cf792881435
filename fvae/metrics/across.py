"""Scores of a run beside others of its setting, which differ in their seed: no labels needed.

What disentangles is alike whatever the seed, what entangles is not: UDR compares the codes of two
models, ModelCentrality has each model find again what the other one generates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from fvae.errors import UserError
from fvae.metrics.constants import CENTRALITY, UDR
from fvae.metrics.predict import lasso

Matrix = np.ndarray


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of a model on images that the others encode, too.

    Attributes:
        codes: floating point ``[N, d]``.
        information: ``[d]``, nats: the mean KL to the prior (of a GAN, mutual information).
    """

    codes: Matrix
    information: Matrix

    @classmethod
    def of(cls, codes: Tensor | Matrix, information: Tensor | Matrix) -> "Codes":
        """Check what somebody gives, and return it as NumPy's.

        Raises:
            UserError: the shapes do not fit, or a number is not finite.
        """
        codes, information = np.asarray(codes, np.float64), np.asarray(information, np.float64)
        if codes.ndim != 2 or not codes.size or information.shape != codes.shape[1:]:
            raise UserError(
                f"codes: got shape {list(codes.shape)} with information {list(information.shape)},"
                " expected [N, d] with [d]"
            )
        if not (np.isfinite(codes).all() and np.isfinite(information).all()):
            raise UserError("codes: hold a number that is not finite; the model has diverged")
        return cls(codes, information)

    def informative(self) -> Matrix:
        """Dimensions of more than 0.01 nats, bool ``[d]``."""
        return self.information > UDR.threshold


def _spearman(a: Matrix, b: Matrix) -> Matrix:
    """Absolute rank correlation of columns: ``[N, d]`` and ``[N, e]`` -> ``[d, e]``."""
    from scipy.stats import rankdata

    return np.abs(_standard(rankdata(a, axis=0)).T @ _standard(rankdata(b, axis=0))) / len(a)


def _lasso(a: Matrix, b: Matrix) -> Matrix:
    """Absolute weights of Lasso regressions of the columns of b on those of a: ``[d, e]``."""
    if not a.shape[1] or not b.shape[1]:
        return np.zeros((a.shape[1], b.shape[1]))
    weights = lasso(_standard(a), _standard(b), UDR.penalty).coef_
    return np.abs(weights.reshape(b.shape[1], a.shape[1])).T


def _standard(a: Matrix) -> Matrix:
    """Columns with mean 0 and variance 1; 0 where they are constant."""
    # Rounding gives a constant column a variance just above 0: compare its ends instead.
    moves = a.max(0) > a.min(0)
    return (a - a.mean(0)) / np.where(moves, a.std(0), np.inf)


def relative_strength(similarity: Matrix) -> float:
    """1 / (d + e) [sum_b max_a R^2 / sum_a R  +  sum_a max_b R^2 / sum_b R]; 0 / 0 counts as 0.

    Args:
        similarity: R(a, b), 0 or more, ``[d, e]``: of the informative dimensions of two models.

    Returns:
        1 where R is a permutation, 0 where a model has no informative dimension.

    Source: Duan et al. 2020, equation 3.
    """
    total = 0.0
    for axis in range(2):
        if similarity.shape[axis]:
            sums = similarity.sum(axis)
            best = similarity.max(axis) ** 2
            total += float(np.divide(best, sums, out=np.zeros_like(sums), where=sums > 0).sum())
    return total / max(1, sum(similarity.shape))


def udr_scores(
    models: Sequence[Codes], similarity: Literal["spearman", "lasso"] = "spearman"
) -> list[float]:
    """UDR_i = median over j != i of the relative strength of the similarities of models i and j.

    Args:
        models: of one setting and several seeds, two or more, on the same images.
        similarity: of dimension a of model i and b of model j: the absolute "spearman" rank
            correlation, or the absolute weight of a in a "lasso" that predicts b.

    Returns:
        a score for each model, 0 to about 1. Dimensions of 0.01 nats or less are left out.

    Raises:
        UserError: there are fewer than two models, or their numbers of images differ.

    Source: Duan et al. 2020, section 4.
    """
    if len(models) < 2 or len({len(model.codes) for model in models}) > 1:
        counts = [len(model.codes) for model in models]
        raise UserError(f"models: got codes of {counts} images, expected two or more of as many")
    compare = {"spearman": _spearman, "lasso": _lasso}[similarity]
    used = [model.codes[:, model.informative()] for model in models]
    strength = np.zeros((len(used), len(used)))
    for i, a in enumerate(used):
        for j, b in enumerate(used):
            if similarity == "spearman" and j < i:
                strength[i, j] = strength[j, i]  # R is the other's transposed
            elif i != j:
                strength[i, j] = relative_strength(compare(a, b))
    return [float(np.median(np.delete(row, i))) for i, row in enumerate(strength)]


def agreement(codes: Codes, fixed: Sequence[int] | Matrix) -> float:
    """Share of votes that a majority classifier gets right, as of the FactorVAE metric.

    A vote is L images that another model made with one of its dimensions fixed; it goes to the
    dimension j of least ``var_j(the L images) / var_j(all of them)``; ties to the lowest j.

    Args:
        codes: of the images, ``[V L, d]``, the images of a vote one after another.
        fixed: the dimension that vote v fixed, ``[V]``.

    Returns:
        0 to 1; 0 where nothing was fixed or no dimension of the codes is informative.

    Source: Lin et al. 2020, section 4; Kim & Mnih 2018, section 4.
    """
    fixed = np.asarray(fixed, np.int64)
    z = codes.codes
    active = codes.informative() & (z.max(0) > z.min(0))
    if not len(fixed) or not active.any():
        return 0.0
    z = z[:, active] / z[:, active].std(0)
    winners = z.reshape(len(fixed), -1, z.shape[1]).var(1).argmin(1)
    votes = np.zeros((z.shape[1], fixed.max() + 1), np.int64)
    np.add.at(votes, (winners, fixed), 1)
    return float(votes.max(1).sum() / len(fixed))


def centralities(agreements: Matrix) -> list[float]:
    """s_i = mean over j != i of (A_ij + A_ji) / 2.

    Args:
        agreements: A_ij, :func:`agreement` of model i on what model j generates, ``[n, n]``,
            n >= 2; the diagonal is not read.

    Source: Lin et al. 2020, section 4.
    """
    both = (agreements + agreements.T) / 2
    return [float(np.delete(row, i).mean()) for i, row in enumerate(both)]


@dataclass(frozen=True)
class Across:
    """A score of runs of one setting beside each other.

    Attributes:
        about: one line.
        of_codes: the scores from codes of the same images; None: from what the models generate.
    """

    about: str
    of_codes: Callable[[Sequence[Codes]], list[float]] | None


#: Such scores by name, as `fvae study --metrics` takes them.
ACROSS = {
    "udr": Across("unsupervised disentanglement ranking, by rank correlation", udr_scores),
    "udr_lasso": Across("the same by Lasso regression", lambda models: udr_scores(models, "lasso")),
    "model_centrality": Across("ModelCentrality", None),
}

#: What the scores were taken with; others are taken again.
CONSTANTS = {"udr": vars(UDR), "centrality": vars(CENTRALITY)}
