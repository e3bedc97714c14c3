"""A progress bar on standard error, by tqdm."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

__all__ = ["Bar", "forecast"]


def forecast(news: dict[str, Any]) -> str:
    """Return one line on what a training will take, from the news before its first step."""
    first, total = news.get("first_step", 0), news["num_steps"]
    minutes = news["seconds_per_step"] * (total - first) / 60
    memory = news.get("memory")
    return (
        f"training will take about {minutes:.1f} minutes"
        + ("" if memory is None else f" and {memory / 2**30:.1f} GiB of memory")
        + (f", going on after step {first}" if first else "")
    )


class Bar:
    """A bar that is made when the first figure arrives, and closed when the work ends or fails."""

    def __init__(self, what: str, unit: str = "step", quiet: bool = False):
        """Describe the work; `quiet` shows nothing."""
        self._what, self._unit, self._quiet = what, unit, quiet
        self._bar: Any = None
        self.first = 0  # where a resumed run goes on
        self.noted = False  # whether anything was said above the bar

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int, **figures: str) -> None:
        """Move the bar to `done` of `total`."""
        if self._quiet:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=self.first, desc=self._what, unit=self._unit, dynamic_ncols=True)
        self._bar.total = total
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        self.noted = True
        if not self._quiet:
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
