"""The runs of a study's grid, and their names."""

import dataclasses
from typing import Any

import msgspec

from fvae.config import StudyConfig, TrainConfig, foreign
from fvae.errors import UserError
from fvae.registry import OBJECTIVES
from fvae.settings import assignments_of

#: Settings that the grid gives to each run.
OF_A_RUN = tuple(f.name for f in dataclasses.fields(StudyConfig) if not f.init)

# Of the data there is one set for all runs.
_SHARED = (*OF_A_RUN, "data", "images", "factors", "image_size", "device")


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
    """Return the runs of a grid by name, such as "factor-vae-gamma10-seed0".

    Raises:
        UserError: ``config.own`` holds something that no run can have.
    """
    common: dict[str, Any] = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(TrainConfig)
        if f.name not in OF_A_RUN
    }
    runs = {}
    for name in config.objectives:
        objective, useless, own = OBJECTIVES[name], foreign(name), own_of(config, name)
        for weight in getattr(config, objective.grid) if objective.grid else (None,):
            for seed in range(config.seeds):
                fitting = {n: v for n, v in common.items() if n not in useless}
                if objective.grid and objective.weight:
                    fitting[objective.weight] = weight
                run = TrainConfig(**fitting | own, objective=name, seed=seed)
                runs[f"{setting_of(run)}-seed{seed}"] = run
    return runs


def own_of(config: StudyConfig, objective: str) -> dict[str, Any]:
    """Return the settings by name that ``config.own`` gives to the runs of an objective.

    Raises:
        UserError: an entry is written otherwise, or names no objective or setting of one.
    """
    kinds = {f.name: f.type for f in dataclasses.fields(TrainConfig) if f.name not in _SHARED}
    found: dict[str, Any] = {}
    for text in config.own:
        name, values = assignments_of("--own", text)
        of_objective = OBJECTIVES[name].name == objective  # refuses what is none
        for setting, value in values.items():
            if setting not in kinds:
                raise UserError(f"--own {text}: {setting!r} is no setting of an objective's runs")
            try:
                given = msgspec.convert(value, kinds[setting], strict=False)
            except msgspec.ValidationError as error:
                reason = str(error).replace("`", "")
                raise UserError(f"--own {text}: {setting}: got {value!r}. {reason}") from None
            found |= {setting: given} if of_objective else {}
    return found
