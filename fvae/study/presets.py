"""What ``fvae study --preset`` takes: grids of published studies, and the settings of their runs.

Of Kim & Mnih 2018 there are both sets with ground-truth factors, each at three scales:

* ``full``: as published. 300,000 and 500,000 steps, 10 seeds, gamma 35 and beta 4 as the best of 2D
  Shapes and gamma 7 of 3D Shapes are from memory. The paper's own points could not all be read; the
  grids are those of Locatello et al. 2019 with these best ones added.
* ``cpu``: a night on two cores.
* ``smoke``: minutes, with nets that learn nothing; shows that all parts work.
"""

from typing import Any

from fvae.config import GRIDS, RECIPES, StudyConfig

#: The data of each set, and what the paper changes of its networks there.
_SETS: dict[str, dict[str, Any]] = {
    "2d-shapes": {"data": "dsprites"},
    "3d-shapes": {"data": "shapes3d", "hidden_units": 256},
}

#: How the runs of the scale ``cpu`` are trained: the paper's settings would take weeks.
_CPU_TRAINING: dict[str, Any] = RECIPES["fast"] | {
    # The losses are the paper's, whose KL weighs 1 from the first step.
    "kl_start": 1.0, "kl_steps": 0, "learning_rate_warmup_steps": 0,
    # A step of infowgan-gp, five of its critic, takes about twenty times as long: as much time.
    "own": ("infowgan-gp:steps=600,learning_rate=1e-4",),
}  # fmt: skip

_SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "gammas": (10.0, 35.0), "betas": (1.0, 4.0), "seeds": 2, "metrics": ("factor_vae",),
        "strategy": "one-by-one", "device": "cpu", "steps": 60, "log_every": 10,
        "learning_rate": 1e-3, "conv_channels": (8, 8, 16, 16), "hidden_units": 32,
        "disc_units": 64, "disc_hidden_layers": 2, "own": ("infowgan-gp:steps=10,log_every=2",),
    },
    # A process a core: finished runs come one by one, which a stopped study keeps.
    "cpu": _CPU_TRAINING | {
        "gammas": (10.0, 20.0, 35.0), "betas": (1.0, 4.0, 8.0), "seeds": 3,
        "strategy": "processes", "device": "cpu",
    },
    "full": {"seeds": 10},
}  # fmt: skip

#: What the scale ``full`` has of each set.
_FULL: dict[str, dict[str, Any]] = {
    "2d-shapes": {"steps": 300_000, "gammas": (10.0, 20.0, 30.0, 35.0, 40.0, 50.0, 100.0)},
    "3d-shapes": {"steps": 500_000, "gammas": (7.0, 10.0, 20.0, 30.0, 40.0, 50.0, 100.0)},
}


def _paper(name: str, scale: str) -> dict[str, Any]:
    return (
        {"objectives": ("factor-vae", "beta-vae", "infowgan-gp"), "protocol": "kim2018"}
        | RECIPES["kim2018"] | _SETS[name] | {"betas": StudyConfig.betas}
        | _SCALES[scale] | (_FULL[name] if scale == "full" else {})
    )  # fmt: skip


#: The choices of ``fvae paper``.
SETS, SCALES = tuple(_SETS), tuple(_SCALES)


def paper_preset(set: str, scale: str) -> str:
    """Return the name of the preset of a set of the paper and a scale."""
    return f"paper-{set}-{scale}"


_PAPER = {paper_preset(name, scale): _paper(name, scale) for name in SETS for scale in SCALES}
PRESETS: dict[str, dict[str, Any]] = {
    "locatello2019": RECIPES["locatello2019"] | {
        "objectives": (
            "beta-vae", "factor-vae", "beta-tcvae", "dip-vae-i", "dip-vae-ii", "annealed-vae",
        ),
        "seeds": 50, "protocol": "locatello2019",
    } | {name: getattr(StudyConfig, name) for name in GRIDS},
} | _PAPER  # fmt: skip
