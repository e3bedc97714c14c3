"""Defects of the cache and of positions: rows that stay, rows that are lost, rows in the wrong place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gallery_tools import REVIEW, Defect, Setup, Site

WINDOW = 3


def _after_cut(site: Site, number: int, damage: Callable[[Any, int, int], None]) -> None:
    """Damage the cache after a step's first rollback (of look-ahead rows) or its second (of rejected drafts).

    `damage(arrays, old, new)` is called for keys and values of one sequence with its length before and after.
    """
    cache = site.module("model.cache").KVCache
    right = cache.truncate

    def wrong(self: Any, length: Any) -> None:
        before = [self.length] if site.single else self.lengths.tolist()
        right(self, length)
        site.cuts += 1
        if not site.at_work or site.cuts != number:
            return
        after = [self.length] if site.single else self.lengths.tolist()
        for row, (old, new) in enumerate(zip(before, after, strict=True)):
            for arrays in (self.keys, self.values):
                if old > new > 0:
                    damage(arrays if site.single else arrays[:, row], old, new)

    site.set(cache, "truncate", wrong)


def _keep_one_too_many(arrays: Any, old: int, new: int) -> None:
    """Let the first dropped row overwrite the last kept one, which is what an offset of 1 leads to."""
    arrays[:, :, new - 1] = arrays[:, :, new] * 1


def _overwrite_the_window(arrays: Any, old: int, new: int) -> None:
    """Lose what dropped rows have overwritten in a ring of as many slots as the window has."""
    for column in range(new, old):
        if column >= WINDOW:
            arrays[:, :, column - WINDOW] = arrays[:, :, column] * 1


def rejected_draft_in_the_cache(site: Site) -> None:
    _after_cut(site, 2, _keep_one_too_many)


def lookahead_row_in_the_cache(site: Site) -> None:
    _after_cut(site, 1, _keep_one_too_many)


def ring_not_rolled_back(site: Site) -> None:
    _after_cut(site, 2, _overwrite_the_window)


def key_written_twice(site: Site) -> None:
    """Let the key of a position from 12 on land 12 positions before it, too: a table of pages that is too short."""

    def wrong(right: Any, self: Any, layer: int, keys: Any, *rest: Any) -> Any:
        found = right(self, layer, keys, *rest)
        ends = [self.length] if site.single else self.lengths.tolist()
        for row, start in enumerate(ends):
            whole, new = (self.keys[layer], keys) if site.single else (self.keys[layer, row], keys[row])
            for place in range(max(start, 12), start + keys.shape[-2]):
                whole[:, place - 12] = new[:, place - start]
        return found

    site.wrong(site.module("model.cache").KVCache, "write", wrong)


def models(site: Site) -> tuple[type, ...]:
    """Return the classes whose passes a defect may bend."""
    return site.pkg.TableModel, site.pkg.Transformer


def moved_positions(site: Site, number: int, move: Callable[[Any, Any, Any], Any]) -> None:
    """Run a step's first pass (which drafts) or its second (which verifies) with other positions."""
    for model in models(site):

        def wrong(right: Any, self: Any, inputs: Any, cache: Any, *rest: Any) -> Any:
            site.passes += 1
            if site.passes != number:
                return right(self, inputs, cache, *rest)
            count = inputs.shape[-2]
            positions = cache.length + site.xp.arange(count) if site.single else cache.next_positions(count)
            return right(self, inputs, cache, move(self, inputs, positions))

        site.wrong(model, "hidden", wrong)


def verification_one_position_late(site: Site) -> None:
    moved_positions(site, 2, lambda model, inputs, positions: positions + 1)


ROWS = (
    Defect(
        "rejected draft in the cache",
        "mlx-examples #149",
        "the rollback is off by one: a rejected draft's row stands where an accepted token's should",
        rejected_draft_in_the_cache,
        merge=False,
    ),
    Defect(
        "look-ahead row in the cache",
        "the danger of vLLM #45007",
        "a look-ahead row stays after the drafting call, where later tokens see it",
        lookahead_row_in_the_cache,
        merge=False,
        alike=False,
    ),
    Defect(
        "ring buffer not rolled back",
        "mlx-lm #1423, transformers #48280",
        "a window's ring has lost the rows that rejected drafts were written over",
        ring_not_rolled_back,
        merge=False,
        alike=False,
    ),
    Defect(
        "key written over an early one",
        REVIEW,
        "from position 12 on a key is written over that of another position, too",
        key_written_twice,
        Setup(case="table, greedy"),
    ),
    Defect(
        "verification one position late",
        "transformers #30042, #30413",
        "the verifying pass counts positions from the wrong start",
        verification_one_position_late,
        merge=False,
    ),
)
