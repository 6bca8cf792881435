"""The runs of a study's grid, and their names."""

import dataclasses

from fvae.config import StudyConfig, TrainConfig

#: The option that holds an objective's weights, and the setting of a run that takes one.
_WEIGHTS = {"factor-vae": ("gammas", "gamma"), "beta-vae": ("betas", "beta")}
#: Settings that the grid gives to each run.
OF_A_RUN = ("objective", "gamma", "beta", "seed")


def setting_of(config: TrainConfig) -> str:
    """Return the name of a run's setting, such as "factor-vae-gamma10"."""
    if config.objective not in _WEIGHTS:
        return config.objective
    name = _WEIGHTS[config.objective][1]
    return f"{config.objective}-{name}{weight_of(config)}"


def weight_of(config: TrainConfig) -> str:
    """Return gamma or beta as text that no other number has, "" for objectives without."""
    if config.objective not in _WEIGHTS:
        return ""
    return repr(float(getattr(config, _WEIGHTS[config.objective][1]))).removesuffix(".0")


def expand(config: StudyConfig) -> dict[str, TrainConfig]:
    """Return the runs of a grid by name, such as "factor-vae-gamma10-seed0"."""
    common = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(TrainConfig)
        if f.name not in OF_A_RUN
    }
    runs = {}
    for objective in config.objectives:
        option, name = _WEIGHTS.get(objective, (None, None))
        for weight in getattr(config, option) if option else (None,):
            for seed in range(config.seeds):
                varied = {name: weight} if name else {}
                run = TrainConfig(**common, objective=objective, seed=seed, **varied)
                runs[f"{setting_of(run)}-seed{seed}"] = run
    return runs
