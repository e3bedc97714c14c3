"""A progress bar on standard error, by tqdm."""

from __future__ import annotations

from types import TracebackType
from typing import Any

__all__ = ["Bar"]


class Bar:
    """A bar that is made when the first figure arrives, and closed when the work ends or fails."""

    def __init__(self, what: str, unit: str = "step", quiet: bool = False):
        """Describe the work; `quiet` shows nothing."""
        self._what, self._unit, self._quiet = what, unit, quiet
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int, first: int = 0, **figures: str) -> None:
        """Move the bar to `done` of `total`; `first` is where a resumed run began."""
        if self._quiet:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=first, desc=self._what, unit=self._unit, dynamic_ncols=True)
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        if not self._quiet:
            from tqdm import tqdm

            tqdm.write(line, file=_stderr())


def _stderr() -> Any:
    import sys

    return sys.stderr
