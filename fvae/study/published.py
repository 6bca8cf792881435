"""Published numbers that a reproduction of the FactorVAE paper is laid beside, with their sources.

None of the paper's own numbers could be read from it here: those that stand in people's memory say
so. All are of about as many steps as the paper's, with other networks' code and other metric code;
a DCI, for instance, differs by 0.1 between two laboratories.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A published score.

    Attributes:
        metric: as in :data:`fvae.registry.METRICS`.
        objective: ours that it is laid beside.
        weight: of the objective; None where it is not known, and the best one is compared.
        value: as it was published, with its spread where there was one.
        source: where it was read.
        model: what it was called there, where that is not our objective.
    """

    metric: str
    objective: str
    weight: float | None
    value: str
    source: str
    model: str = ""


_CR = "InfoGAN-CR's repository, Table 1"  # its own implementation and metric code
_CR_OTHERS = "InfoGAN-CR's repository, Table 1, where others are quoted"
_MEMORY = "Kim & Mnih 2018, from memory"
_SECOND_HAND = "second-hand, first source not read"
_ENCDIFF = "EncDiff, Table 1"

_OF_GAMMA = {
    "factor_vae": ("0.79", "0.83", "0.83", "0.82"),
    "beta_vae": ("0.79", "0.83", "0.85", "0.84"),
    "mig": ("0.27", "0.40", "0.40", "0.43"),
    "sap": ("0.47", "0.57", "0.57", "0.56"),
    "dci": ("0.67", "0.70", "0.72", "0.74"),
}
_GAMMAS = (1.0, 10.0, 20.0, 40.0)

#: Published scores by the paper's set.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "2d-shapes": (
        Published("factor_vae", "factor-vae", 35.0, "about 0.82", _MEMORY),
        Published("factor_vae", "beta-vae", 4.0, "about 0.73", _MEMORY),
        Published("factor_vae", "infowgan-gp", None, "about 0.59", _MEMORY),
        Published("recon", "factor-vae", None, "about 45", _MEMORY),
        *(
            Published(metric, "factor-vae", gamma, value, _CR)
            for metric, values in _OF_GAMMA.items()
            for gamma, value in zip(_GAMMAS, values, strict=True)
        ),
        Published("factor_vae", "factor-vae", None, "0.8215 ± 0.0088", _SECOND_HAND),
        Published("factor_vae", "factor-vae", None, "0.819 ± 0.028",
                  "a public implementation, second-hand"),
        Published("factor_vae", "beta-vae", 1.0, "0.63 ± 0.06", _CR_OTHERS, "VAE"),
        Published("factor_vae", "beta-vae", 1.0, "0.694 ± 0.109", _SECOND_HAND, "VAE"),
        Published("factor_vae", "beta-vae", None, "0.63 ± 0.10", _CR_OTHERS),
        Published("factor_vae", "infowgan-gp", None, "0.59", _CR_OTHERS, "InfoGAN"),
        Published("mig", "beta-vae", 1.0, "0.10", _CR_OTHERS, "VAE"),
        Published("mig", "beta-vae", None, "0.21", _CR_OTHERS),
        Published("mig", "infowgan-gp", None, "0.05", _CR_OTHERS, "InfoGAN"),
        Published("sap", "beta-vae", None, "0.55", _CR_OTHERS),
        Published("dci", "beta-vae", 1.0, "0.30", _CR_OTHERS, "VAE"),
        Published("dci", "beta-vae", None, "0.41", _CR_OTHERS),
        Published("dci", "infowgan-gp", None, "0.41", _CR_OTHERS, "InfoGAN"),
    ),
    "3d-shapes": (
        Published("factor_vae", "factor-vae", None, "0.840 ± 0.066", _ENCDIFF),
        Published("dci", "factor-vae", None, "0.611", _ENCDIFF),
        Published("dci", "factor-vae", None, "0.484", "another laboratory's, second-hand"),
    ),
}  # fmt: skip
