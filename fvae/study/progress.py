"""The progress of a study: one display for all its runs and processes."""

import sys
import time
from types import TracebackType

from rich import progress
from rich.console import Console

from fvae.study.plan import Plan

_WORDS = {"train": "training", "score": "scoring"}


class StudyProgress:
    """A bar over all steps of all runs with the remaining time; plain lines where no terminal is.

    Args:
        ends: step at which each run that is not finished ends, by name.
        done: step at which each of them stands.
        total: runs of the study, finished ones included.
        plan: how they are executed.
        bars: show a bar rather than lines.
    """

    def __init__(
        self, ends: dict[str, int], done: dict[str, int], total: int, plan: Plan, bars: bool
    ) -> None:
        self._ends = ends
        self._left = {run: max(0, end - done[run]) for run, end in ends.items()}
        self._steps = sum(self._left.values())
        self._done, self._total, self._bars = total - len(ends), total, bars
        self._next_update = 0.0
        self._next_line = time.monotonic() + 30
        self._bar = progress.Progress(
            progress.TextColumn("{task.fields[runs]} runs"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[doing]}"),
            console=Console(stderr=True, highlight=False),
            refresh_per_second=2,
            disable=not bars,
        )
        self._task = self._bar.add_task("", total=self._steps, runs=self._runs(), doing="")
        how = f"{plan.strategy}, {plan.processes} process(es) of {plan.threads} thread(s)"
        print(f"{len(ends)} of {total} runs to do: {how}", file=sys.stderr)

    def _runs(self) -> str:
        return f"{self._done}/{self._total}"

    def __enter__(self) -> "StudyProgress":
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def on_event(self, run: str, phase: str, step: int) -> None:
        """Take note of what :func:`fvae.study.work.work` says about a run."""
        self._left[run] = max(0, self._ends[run] - step) if phase == "train" else 0
        self._done += phase in ("done", "failed")
        if phase == "train" and time.monotonic() < self._next_update:
            return
        self._next_update = time.monotonic() + 0.2
        completed = self._steps - sum(self._left.values())
        if self._bars:
            doing = f"{run}: {_WORDS.get(phase, phase)}"
            self._bar.update(self._task, completed=completed, runs=self._runs(), doing=doing)
        elif phase in ("done", "failed"):
            print(f"{self._runs()} runs  {run}: {phase}", file=sys.stderr)
        elif time.monotonic() > self._next_line:
            self._next_line = time.monotonic() + 30
            share = completed / max(1, self._steps)
            print(f"{self._runs()} runs  {share:.0%} of the steps", file=sys.stderr)
