"""Wrong samplers must fail: each mutant is a real mistake, put into the running step, and its damage is seen.

The law test of the suite asks for a deviation of at most 1e-12. Here every mutant, most of them at work only from the
second cycle on, must deviate by more than 1e-3, in both packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import PACKAGES, exact_target, lookahead, package, table, transformer
from pass_sampling.reference.law import output_law

DAMAGE = 1e-3
PROMPT = (1, 0)


@dataclass
class Second:
    """Says whether the step that runs now is at least the second cycle of its sequences."""

    cycle: bool = False


def mutant(pkg: Any, monkeypatch: pytest.MonkeyPatch, name: str, late: bool) -> type:
    """Return a PaSS whose step makes a mistake, in every cycle or, if `late`, from the second on."""
    second = Second()
    MUTANTS[name](pkg, monkeypatch, lambda: second.cycle or not late)

    class Mutant(pkg.PaSS):  # type: ignore[name-defined,misc]
        def step(self, state: Any, uniforms: Any, trace: bool = False) -> Any:
            lengths, prompts = np.asarray(state_lengths(state)), np.asarray(state_prompts(state))
            second.cycle = bool((lengths > prompts).any())
            return super().step(state, uniforms, trace)

    return Mutant


def state_lengths(state: Any) -> Any:
    return state.lengths.numpy() if hasattr(state, "lengths") else [len(state.tokens)]


def state_prompts(state: Any) -> Any:
    return state.prompt_lengths.numpy() if hasattr(state, "prompt_lengths") else [state.prompt_length]


def patch(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, wrong: Callable[..., Any], at_work: Callable[[], bool]
) -> None:
    """Replace a function by a wrong one that is handed the right one first, while the mutant is at work."""
    right = getattr(module, name)

    def either(*args: Any, **kwargs: Any) -> Any:
        return wrong(right, *args, **kwargs) if at_work() else right(*args, **kwargs)

    monkeypatch.setattr(module, name, either)


def verify_of(pkg: Any) -> Any:
    return __import__(f"{pkg.__name__}.verify", fromlist=["verify"])


def resample_from_target(pkg: Any, monkeypatch: Any, at_work: Any) -> None:
    """A rejected draft is replaced from the target's row instead of the residual (BiTA's sampling branch)."""
    patch(monkeypatch, verify_of(pkg), "residual_probs", lambda right, target, draft: target, at_work)


def absolute_residual(pkg: Any, monkeypatch: Any, at_work: Any) -> None:
    """The residual is |target - draft|."""

    def wrong(right: Any, target: Any, draft: Any) -> Any:
        residual = abs(target - draft)
        total = residual.sum(-1, keepdims=True)
        return np.where(total > 0, residual / total, target) if pkg is reference else _torch_where(residual, target)

    patch(monkeypatch, verify_of(pkg), "residual_probs", wrong, at_work)


def _torch_where(residual: Any, target: Any) -> Any:
    total = residual.sum(-1, keepdim=True)
    return (total > 0) * residual / (total + (total == 0)) + (total == 0) * target


def accept_everything(pkg: Any, monkeypatch: Any, at_work: Any) -> None:
    """The acceptance uniform is always 0 (vllm-ascend #13730)."""

    def wrong(right: Any, target: Any, draft: Any, tokens: Any) -> Any:
        return right(target, draft, tokens) * 0 + 1

    patch(monkeypatch, verify_of(pkg), "accept_probs", wrong, at_work)


def inverted_ratio(pkg: Any, monkeypatch: Any, at_work: Any) -> None:
    """The ratio stands on its head: draft over target."""

    def wrong(right: Any, target: Any, draft: Any, tokens: Any) -> Any:
        rows = len(draft) if pkg is reference else draft.shape[1]
        reached = target[:rows] if pkg is reference else target[:, :rows]
        return right(draft, reached + 1e-300, tokens)

    patch(monkeypatch, verify_of(pkg), "accept_probs", wrong, at_work)


def lenient(pkg: Any, monkeypatch: Any, at_work: Any) -> None:
    """Acceptance is 5 % more generous than exactness allows (lenience)."""

    def wrong(right: Any, target: Any, draft: Any, tokens: Any) -> Any:
        return (right(target, draft, tokens) / 0.95).clip(0.0, 1.0)

    patch(monkeypatch, verify_of(pkg), "accept_probs", wrong, at_work)


def _wrong_rule(pkg: Any, monkeypatch: Any, at_work: Any, change: Callable[..., Any]) -> None:
    verify = verify_of(pkg)
    right = verify.RULES["token"]

    def either(target: Any, draft: Any, tokens: Any, *rest: Any) -> Any:
        return right(*(change(target, draft, tokens) if at_work() else (target, draft, tokens)), *rest)

    monkeypatch.setitem(verify.RULES, "token", either)


def bonus_from_the_row_before(pkg: Any, monkeypatch: Any, at_work: Any) -> None:
    """The bonus token is drawn behind the last draft but one."""

    def change(target: Any, draft: Any, tokens: Any) -> Any:
        changed = target.copy() if pkg is reference else target.clone()
        if target.shape[-2] > 1:
            changed[..., -1, :] = target[..., -2, :]
        return changed, draft, tokens

    _wrong_rule(pkg, monkeypatch, at_work, change)


def shifted_draft_laws(pkg: Any, monkeypatch: Any, at_work: Any) -> None:
    """Each draft is judged by its neighbour's draft law."""

    def change(target: Any, draft: Any, tokens: Any) -> Any:
        shifted = np.roll(draft, 1, axis=-2) if pkg is reference else draft.roll(1, dims=-2)
        return target, shifted, tokens

    _wrong_rule(pkg, monkeypatch, at_work, change)


def draft_law_at_another_temperature(pkg: Any, monkeypatch: Any, at_work: Any) -> None:
    """The law reported for a draft is sharper than the one it was drawn from (transformers #47932's class)."""

    def change(target: Any, draft: Any, tokens: Any) -> Any:
        sharper = draft**2
        total = sharper.sum(-1)
        return target, sharper / total[..., None], tokens

    _wrong_rule(pkg, monkeypatch, at_work, change)


def rejected_draft_stays_in_the_cache(pkg: Any, monkeypatch: Any, at_work: Any) -> None:
    """The rollback after a verification forgets one row, so later tokens see a rejected draft (mlx-examples #149)."""
    cache = __import__(f"{pkg.__name__}.cache", fromlist=["cache"]).KVCache
    right = cache.truncate

    def wrong(self: Any, length: Any) -> None:
        before = self.length if pkg is reference else self.lengths.clone()
        right(self, length)
        if at_work():  # what the next pass finds is not what belongs there: the first scratch slot was moved down
            _swap_last_slot(self, before, pkg is reference)

    monkeypatch.setattr(cache, "truncate", wrong)


def _swap_last_slot(cache: Any, before: Any, single: bool) -> None:
    if single:
        if before > cache.length > 0:
            for array in (cache.keys, cache.values):
                array[:, :, cache.length - 1] = array[:, :, cache.length]
        return
    for row, (old, new) in enumerate(zip(before.tolist(), cache.lengths.tolist(), strict=True)):
        if old > new > 0:
            for tensor in (cache.keys, cache.values):
                tensor[:, row, :, new - 1] = tensor[:, row, :, new].clone()


MUTANTS: dict[str, Callable[[Any, Any, Any], None]] = {
    mutation.__name__: mutation
    for mutation in (
        resample_from_target,
        absolute_residual,
        accept_everything,
        inverted_ratio,
        lenient,
        bonus_from_the_row_before,
        shifted_draft_laws,
        draft_law_at_another_temperature,
        rejected_draft_stays_in_the_cache,
    )
}


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("late", [False, True], ids=["every-cycle", "from-the-second-cycle"])
@pytest.mark.parametrize("mutation", MUTANTS)
@pytest.mark.parametrize("kind", ["table", "transformer"])
def test_a_wrong_step_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, late: bool, mutation: str, kind: str) -> None:
    pkg = package(name)
    if (kind, mutation, late) == ("transformer", "lenient", True):
        damage = 1e-5  # the damage of a slight mistake, late, under nearly uniform laws
    else:
        damage = DAMAGE if kind == "table" else 1e-4

    def make(package_: Any) -> Any:
        return table(package_, seed=21) if kind == "table" else transformer(package_, seed=21)

    model = make(pkg)
    ending = {"max_new_tokens": 6}
    wrong_type = mutant(pkg, monkeypatch, mutation, late)
    wrong = wrong_type(model, lookahead(pkg, model))
    if mutation == "rejected_draft_stays_in_the_cache":  # states that differ behind the same tokens are not merged
        with pytest.raises(ValueError, match="expected merge=False or keys for them"):
            output_law(wrong, PROMPT, pkg.Ending(**ending))
        ending = {"max_new_tokens": 5}
    law = output_law(wrong, PROMPT, pkg.Ending(**ending), merge=mutation != "rejected_draft_stays_in_the_cache")
    monkeypatch.undo()
    truth = exact_target(make(reference), reference.SamplingConfig(), PROMPT, reference.Ending(**ending))
    assert law.total_variation(truth) > damage, law.total_variation(truth)
