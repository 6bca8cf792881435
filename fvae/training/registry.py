"""The objectives of this package; to add one, add an entry."""

from functools import partial

from fvae.models import infogan
from fvae.registry import OBJECTIVES, Objective
from fvae.training.infogan import InfoGANTrainer
from fvae.training.objectives import beta_vae, factor_vae
from fvae.training.regularised import annealed_vae, beta_tcvae, dip_vae_i, dip_vae_ii

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

_dip = partial(Objective, weight="dip_lambda", grid="dip_lambdas", settings=("dip_ratio",))

for _entry in (
    Objective("vae", "reconstruction + KL", beta_vae),
    Objective("beta-vae", "reconstruction + beta KL", beta_vae, weight="beta", grid="betas"),
    Objective(
        "factor-vae", "reconstruction + KL + gamma TC", factor_vae,
        weight="gamma", grid="gammas", settings=("kl_start", "kl_steps"), batches=2,
        discriminator=True,
    ),
    Objective(
        "beta-tcvae", "reconstruction + index-code MI + beta TC + dimension-wise KL", beta_tcvae,
        weight="beta", grid="tc_betas", settings=("tc_sampling",), counts=True,
    ),
    _dip("dip-vae-i", "reconstruction + KL + lambda |Cov[mu] - 1|^2", dip_vae_i),
    _dip("dip-vae-ii", "reconstruction + KL + lambda |Cov[z] - 1|^2", dip_vae_ii),
    Objective(
        "annealed-vae", "reconstruction + gamma |KL - a growing capacity|", annealed_vae,
        weight="capacity", grid="capacities", warmup="capacity_steps",
        settings=("capacity_weight",),
    ),
    _gan("infogan", "a generator against a critic that guesses its codes"),
    _gan("infowgan-gp", "the same with a Wasserstein critic and gradient penalty"),
):  # fmt: skip
    OBJECTIVES.add(_entry)
