"""The progress of a training run on a terminal, or as plain lines."""

import sys
from typing import Any, Self

from rich import progress
from rich.console import Console

from fvae.training.loop import HEADLINES


class TrainingProgress:
    """A progress bar with steps/s, losses and remaining time; plain lines where no terminal is.

    Args:
        steps: steps of the run.
        console: of standard error.
    """

    def __init__(self, steps: int, console: Console) -> None:
        self.console = console
        self.steps, self.next_line = steps, 0
        self.bar = progress.Progress(
            progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[losses]}"),
            console=self.console,
            refresh_per_second=2,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=steps, rate="", losses="")

    def __enter__(self) -> Self:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def on_step(self, done: int) -> None:
        """Take note of the number of steps done."""
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done)

    def on_log(self, line: dict) -> None:
        """Show a line of the log."""
        losses = "  ".join(f"{n} {line[n]:.3g}" for n in HEADLINES if n in line)
        speed = self.bar.tasks[0].speed
        rate = f"{speed:.1f} steps/s" if speed else ""
        if self.console.is_terminal:
            self.bar.update(self.task, losses=losses, rate=rate)
        elif line["step"] >= self.next_line or line["step"] == self.steps:
            self.next_line = line["step"] + self.steps / 20
            print(
                f"step {line['step']}/{self.steps}  {line['seconds']:.0f} s  {losses}",
                file=sys.stderr,
            )
