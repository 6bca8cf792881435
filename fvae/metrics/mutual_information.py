"""The mean mutual information of two dimensions of the codes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fvae.device import as_imported
from fvae.metrics.constants import MUTUAL_INFORMATION, BinsProtocol
from fvae.metrics.factors import Labels
from fvae.metrics.histogram import between_dimensions
from fvae.metrics.samples import draw_codes


@dataclass(frozen=True, eq=False)
class MutualInformationResult:
    """A mean mutual information of two dimensions.

    Attributes:
        score: mean of ``information`` off the diagonal, nats, at least 0; less is better.
        information: float64 ``[d, d]``, mutual information of each two dimensions, nats; the
            diagonal is the entropy of a dimension.
        protocol: the constants.
        note: empty, or what a reader of the score should know.
    """

    score: float
    information: np.ndarray
    protocol: BinsProtocol
    note: str = ""


@as_imported()
def mutual_information_score(
    codes: Tensor | np.ndarray,
    factor_sizes: Sequence[int] | None = None,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> MutualInformationResult:
    """Mean over pairs i != j of I(z_i; z_j), in nats.

    Mutual information is that of the joint histogram of 10,000 rows drawn with replacement, or of
    all where there are no more, each dimension cut into 20 bins of equal width. The histogram's
    upward bias, at most 19 * 19 / 2n (0.018 nats), is left in, as in the source. A constant
    dimension knows nothing of the others, and counts.

    Args:
        codes: means of the encoder, ``[N, d]``, floating point. Rows outside
            :func:`fvae.metrics.needed` are not read and may be NaN.
        factor_sizes: sizes of a full grid, whose product is N; without effect.
        seed: key of the draw.
        factors: labels of the rows, or a :class:`fvae.metrics.Factors`; without effect.

    Returns:
        A :class:`MutualInformationResult`. Of one dimension the score is 0.

    Raises:
        UserError: an argument has the wrong shape, dtype or value, there are fewer than two rows,
            or a code that is read is not finite.

    Source: Locatello et al. 2019, section 5.4.
    """
    constants = MUTUAL_INFORMATION
    z = draw_codes(codes, factor_sizes, factors, seed, constants.samples)
    information = between_dimensions(z, constants.bins)
    pairs = information[~np.eye(len(information), dtype=bool)]
    note = "" if information.any() else "no dimension varies"
    if len(information) == 1:
        note = "one dimension: there is no pair"
    score = max(0.0, float(pairs.mean())) if len(pairs) else 0.0
    return MutualInformationResult(score, information, constants, note)
