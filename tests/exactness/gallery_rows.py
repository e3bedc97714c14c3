"""Defects of the cache and of positions: rows that stay, rows that are lost, rows in the wrong place."""

from collections.abc import Callable
from functools import partial
from typing import Any

from gallery_tools import CASES, REVIEW, Defect, Site, defects

ROWS: list[Defect] = []
defect = defects(ROWS)
WINDOW = 3


def after_cut(number: int, site: Site, damage: Callable[[Any, int, int], None]) -> None:
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

    site.monkeypatch.setattr(cache, "truncate", wrong)


after_first_cut, after_second_cut = partial(after_cut, 1), partial(after_cut, 2)


@defect("mlx-examples #149", after_second_cut, merge=False)
def rejected_draft_in_the_cache(site: Site, arrays: Any, old: int, new: int) -> None:
    """The rollback is off by one: a rejected draft's row is where an accepted token's should be."""
    arrays[:, :, new - 1] = arrays[:, :, new] * 1


@defect("the danger of vLLM #45007", after_first_cut, "look-ahead row in the cache", merge=False, alike=False)
def lookahead_row_in_the_cache(site: Site, arrays: Any, old: int, new: int) -> None:
    """A look-ahead row stays after the drafting call, where later tokens see it."""
    arrays[:, :, new - 1] = arrays[:, :, new] * 1


@defect("mlx-lm #1423, transformers #48280", after_second_cut, merge=False, alike=False)
def ring_buffer_not_rolled_back(site: Site, arrays: Any, old: int, new: int) -> None:
    """A window's ring has lost the rows that rejected drafts were written over."""
    for column in range(max(new, WINDOW), old):
        arrays[:, :, column - WINDOW] = arrays[:, :, column] * 1


@defect(REVIEW, "cache", case=CASES["table, greedy"])
def key_written_over_an_early_one(site: Site, right: Any, self: Any, layer: int, keys: Any, *rest: Any) -> Any:
    """From position 12 on a key is written over that of another position, too."""
    found = right(self, layer, keys, *rest)
    ends = [self.length] if site.single else self.lengths.tolist()
    for row, start in enumerate(ends):
        whole, new = (self.keys[layer], keys) if site.single else (self.keys[layer, row], keys[row])
        for place in range(max(start, 12), start + keys.shape[-2]):
            whole[:, place - 12] = new[:, place - start]
    return found


def models(site: Site) -> tuple[type, ...]:
    """Return the classes whose passes a defect may bend."""
    return site.pkg.TableModel, site.pkg.Transformer


def moved_positions(number: int, site: Site, move: Callable[[Any, Any, Any], Any]) -> None:
    """Run a step's first pass (which drafts) or its second (which verifies) with other positions."""

    def wrong(right: Any, self: Any, inputs: Any, cache: Any, *rest: Any) -> Any:
        site.passes += 1
        if site.passes != number:
            return right(self, inputs, cache, *rest)
        count = inputs.shape[-2]
        positions = cache.length + site.xp.arange(count) if site.single else cache.next_positions(count)
        return right(self, inputs, cache, move(self, inputs, positions))

    for model in models(site):
        site.wrong(model, "hidden", wrong)


@defect("transformers #30042, #30413", partial(moved_positions, 2), merge=False)
def verification_one_position_late(site: Site, model: Any, inputs: Any, positions: Any) -> Any:
    """The verifying pass counts positions from the wrong start."""
    return positions + 1
