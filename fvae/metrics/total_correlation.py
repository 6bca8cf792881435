"""The total correlation of the aggregate posterior, of any model that has a q(z|x)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fvae import ops, philox
from fvae.device import as_imported
from fvae.errors import UserError
from fvae.metrics.checks import codes_of, require_finite, seed_of
from fvae.metrics.constants import TOTAL_CORRELATION, TotalCorrelationProtocol
from fvae.metrics.factors import Factors, Labels, factors_of
from fvae.metrics.sampling import samples_of
from fvae.philox import Philox, Stream

# Lanes of Stream.CODES and of the noise: of training, of its second batch, of the test.
_FIRST, _SECOND, _TEST = 0, 1, 2


@dataclass(frozen=True, eq=False)
class TotalCorrelationResult:
    """A total correlation, nats, estimated in two ways.

    Attributes:
        score: ``discriminator``.
        discriminator: mean logit difference of a discriminator that was trained on the codes, over
            images that it was not trained on. It falls short of large values, and can be negative.
        pairwise: from the densities of all pairs of the sample. Where a code tells more than log n
            nats of its image, n the images of the sample, each is near to its own image alone, and
            the estimate is too large; the note then says so.
        information: the pairwise estimate of I(z; x), at most log n, nats.
        disc_accuracy: of the discriminator on the test images, 0.5 where it sees no difference.
        protocol: the constants.
        note: empty, or what a reader of the score should know.
    """

    score: float
    discriminator: float
    pairwise: float
    information: float
    disc_accuracy: float
    protocol: TotalCorrelationProtocol
    note: str = ""


@as_imported()
def total_correlation_score(
    codes: Tensor | np.ndarray,
    logvar: Tensor | np.ndarray,
    seed: int = 0,
    *,
    factors: Labels | None = None,
) -> TotalCorrelationResult:
    """TC = KL(q(z) || prod_j q(z_j)), q(z) the mean of q(z|x) over the images, nats.

    z is drawn from q(z|x) = N(mu, exp(logvar)). Two estimates, each of images drawn with
    replacement:

    * a discriminator learns to tell z from z whose dimensions are permuted over the batch, and
      TC = mean(l0 - l1) over other images (Kim & Mnih 2018, as in training, but afterwards, so that
      it can be had for every objective);
    * TC = mean over i of log q(z_i) - sum_j log q(z_ij), both from the mixture of the sample's
      q(z|x) (Chen et al. 2018).

    Args:
        codes: mu, ``[N, d]``, floating point. Rows that are not drawn may be NaN.
        logvar: log variances, of the codes' shape.
        seed: key of every draw, and of the discriminator's weights.
        factors: only their number of rows is looked at.

    Returns:
        A :class:`TotalCorrelationResult`; of one dimension all 0.

    Raises:
        UserError: an argument has the wrong shape or dtype, or a number that is read is not finite.

    Source: Kim & Mnih 2018, section 3 and appendix; Chen et al. 2018, appendix C.
    """
    given = Factors.unknown(len(codes) if factors is None else factors_of(None, factors).rows)
    mu, spread = codes_of(codes, given).float().cpu(), codes_of(logvar, given).float().cpu()
    if mu.shape != spread.shape:
        raise UserError(
            f"logvar: got shape {list(spread.shape)}, expected that of codes, {list(mu.shape)}"
        )
    seed, constants = seed_of(seed), TOTAL_CORRELATION
    rng = Philox(seed)
    train, test = samples_of(given, constants.train_samples, constants.test_samples, rng)
    for name, values in (("codes", mu), ("logvar", spread)):
        require_finite(values, lambda: torch.cat((train, test)), name)
    pairwise, information = _pairwise(mu[train], spread[train], rng)
    if mu.shape[1] == 1:
        return TotalCorrelationResult(0.0, 0.0, 0.0, information, 0.5, constants, _ONE)
    disc = _trained(mu[train], spread[train], seed, constants)
    tc, accuracy = _tested(disc, mu[test], spread[test], rng, constants)
    bound = float(np.log(len(train)))
    note = ""
    if information > 0.9 * bound:
        note = (
            f"the pairwise estimate is too large: codes tell {information:.1f} nats of their"
            f" images, and {len(train):,} images can show {bound:.1f}"
        )
    return TotalCorrelationResult(tc, tc, pairwise, information, accuracy, constants, note)


_ONE = "one dimension: there is none to be correlated with"


def _pairwise(mu: Tensor, logvar: Tensor, rng: Philox) -> tuple[float, float]:
    """TC and I(z; x) from the densities of all pairs."""
    z, _ = ops.reparameterize(mu, logvar, rng.at_lane(_FIRST))
    log_qz, log_prod, log_qzx = ops.pairwise_tc(z, mu, logvar)
    tc, information = (log_qz - log_prod).double().mean(), (log_qzx - log_qz).double().mean()
    return float(tc), float(information)


def _trained(
    mu: Tensor, logvar: Tensor, seed: int, constants: TotalCorrelationProtocol
) -> nn.Module:
    """A discriminator of z, class 0, and of z permuted, class 1."""
    widths = [mu.shape[1]] + [constants.units] * constants.hidden_layers + [2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % (1 << 63))
        layers: list[nn.Module] = []
        for i, o in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(i, o), nn.LeakyReLU(constants.slope)]
    disc = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(
        disc.parameters(), constants.learning_rate, betas=constants.betas, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, constants.steps)
    rng, size = Philox(seed), constants.batch_size
    for _ in range(constants.steps):
        z, other = (_batch(mu, logvar, size, rng.at_lane(lane)) for lane in (_FIRST, _SECOND))
        z_perm = ops.permute_dims(other, rng)
        logits, logits_perm = disc(torch.cat((z, z_perm))).chunk(2)
        _, loss, _ = ops.logit_ratio(logits, logits_perm)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        rng.advance()
    return disc


def _batch(mu: Tensor, logvar: Tensor, size: int, rng: Philox) -> Tensor:
    rows = philox.integers(rng.seed, rng.step, Stream.CODES.at(rng.lane), size, len(mu))
    return ops.reparameterize(mu[rows], logvar[rows], rng)[0]


def _tested(
    disc: nn.Module, mu: Tensor, logvar: Tensor, rng: Philox, constants: TotalCorrelationProtocol
) -> tuple[float, float]:
    """TC and accuracy over the test images, with several draws of each image's noise."""
    with torch.inference_mode():
        tc, accuracy = [], []
        for turn in range(constants.test_draws):
            lane = rng.at_lane(_TEST + turn)
            z, _ = ops.reparameterize(mu, logvar, lane)
            found = ops.logit_ratio(disc(z), disc(ops.permute_dims(z, lane)))
            tc.append(found[0])
            accuracy.append(found[2])
    return float(torch.stack(tc).double().mean()), float(torch.stack(accuracy).double().mean())
