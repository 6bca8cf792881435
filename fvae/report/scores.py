"""The scores that a run folder holds, and of which state of the run they are."""

from pathlib import Path
from typing import Any

import msgspec

from fvae.errors import warn
from fvae.files import from_json
from fvae.registry import METRICS
from fvae.training import checkpoint


class _Score(msgspec.Struct):
    score: float | None


class _Votes(msgspec.Struct):
    score: float | None
    votes: list[list[int]]
    factor_names: list[str]
    note: str | None = None
    exhaustive: float | None = None


class _Scores(msgspec.Struct):
    """What the pages read of an ``eval-*.json``; the state is not in those of version 0.1."""

    protocol: str
    factor_vae: _Votes | None = None
    step: int | None = None
    checkpoint: str | None = None
    errors: dict[str, float | None] = {}


def read_scores(run: Path) -> list[dict[str, Any]]:
    """Return the contents of the run's ``eval-*.json`` files; what is none is left out, and said.

    ``step`` and ``checkpoint`` tell the state that was scored, None where an older fvae did not.
    """
    scores = []
    for path in sorted(run.glob("eval-*.json")):
        try:
            content = from_json(path.read_text(encoding="utf-8"))
            known = msgspec.convert(content, _Scores)
            if not any(name in content for name in METRICS):
                raise ValueError("it holds no score")
            for name in METRICS:
                msgspec.convert(content.get(name, {"score": None}), _Score)
            votes = known.factor_vae
            if votes and {len(row) for row in votes.votes} - {len(votes.factor_names)}:
                raise ValueError("its votes do not fit its factors")
        except (OSError, ValueError) as error:
            warn(f"{path}: not scores that can be read ({error}); `fvae eval` makes them again")
        else:
            scores.append({"step": known.step, "checkpoint": known.checkpoint} | content)
    return scores


def scores_of(run: Path, protocol: str) -> dict[str, Any] | None:
    """Return the scores of the state that a run is in, None where it has none."""
    state = checkpoint.state_of(run)
    for scores in read_scores(run):
        if scores["protocol"] == protocol and state and is_of(scores, state):
            return scores
    return None


def is_of(scores: dict[str, Any], state: checkpoint.State) -> bool:
    """Return whether scores are those of a state; of an older fvae's nothing is known against."""
    return scores["checkpoint"] in (None, state.fingerprint)
