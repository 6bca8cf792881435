"""The runs of a study's grid, and their names."""

import dataclasses
from typing import Any

from fvae.config import StudyConfig, TrainConfig, foreign
from fvae.registry import OBJECTIVES

#: Settings that the grid gives to each run.
OF_A_RUN = tuple(f.name for f in dataclasses.fields(StudyConfig) if not f.init)


def setting_of(config: TrainConfig) -> str:
    """Return the name of a run's setting, such as "factor-vae-gamma10"."""
    objective = OBJECTIVES[config.objective]
    weight = f"-{objective.weight}{weight_of(config)}" if objective.grid else ""
    return config.objective + weight


def weight_of(config: TrainConfig) -> str:
    """Return the varied weight as text that no other number has, "" for objectives without."""
    objective = OBJECTIVES[config.objective]
    if not objective.grid or not objective.weight:
        return ""
    return repr(float(getattr(config, objective.weight))).removesuffix(".0")


def expand(config: StudyConfig) -> dict[str, TrainConfig]:
    """Return the runs of a grid by name, such as "factor-vae-gamma10-seed0"."""
    common: dict[str, Any] = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(TrainConfig)
        if f.name not in OF_A_RUN
    }
    runs = {}
    for name in config.objectives:
        objective, useless = OBJECTIVES[name], foreign(name)
        for weight in getattr(config, objective.grid) if objective.grid else (None,):
            for seed in range(config.seeds):
                fitting = {n: v for n, v in common.items() if n not in useless}
                if objective.grid and objective.weight:
                    fitting[objective.weight] = weight
                run = TrainConfig(**fitting, objective=name, seed=seed)
                runs[f"{setting_of(run)}-seed{seed}"] = run
    return runs
