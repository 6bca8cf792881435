"""The objectives of this package; to add one, add an entry."""

from functools import partial

from fvae.models import infogan
from fvae.registry import OBJECTIVES, Objective
from fvae.training.infogan import InfoGANTrainer
from fvae.training.objectives import beta_vae, factor_vae

_gan = partial(
    Objective,
    weight="mi_weight",
    stacks=False,
    distributes=False,
    trainer=InfoGANTrainer,
    model=infogan.build,
    part="gan",
    first="critic.trunk.0.weight",
)

for _entry in (
    Objective("vae", "reconstruction + KL", beta_vae),
    Objective("beta-vae", "reconstruction + beta KL", beta_vae, weight="beta", grid="betas"),
    Objective(
        "factor-vae", "reconstruction + KL + gamma TC", factor_vae,
        weight="gamma", grid="gammas", batches=2, discriminator=True,
    ),
    _gan("infogan", "a generator against a critic that guesses its codes"),
    _gan("infowgan-gp", "the same with a Wasserstein critic and gradient penalty"),
):  # fmt: skip
    OBJECTIVES.add(_entry)
