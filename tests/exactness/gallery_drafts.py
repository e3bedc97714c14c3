"""Defects of the distributions: a draft's that is not the one reported, a target's without some of its settings."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gallery_tools import CASES, COMMON, PLACES, REVIEW, TABLE, Defect, Site, defects
from pass_sampling.reference.exactness.cases import penalty

DRAFTS: list[Defect] = []
defect = defects(DRAFTS)
PENALTY = replace(TABLE, processor=penalty)


def drawn_from(site: Site, change: Callable[[Any], Any]) -> None:
    """Draw drafts from a changed distribution, while the distribution that is reported stays."""

    def wrong(right: Any, self: Any, column: str, probs: Any, *rest: Any) -> Any:
        return right(self, column, change(probs) if column == "draft" else probs, *rest)

    site.wrong(*PLACES["draws"](site), wrong)


@defect("jaymody/speculative-sampling #3, transformers #30778", drawn_from, "argmax drafts, soft distribution")
def argmax_drafts(site: Site, probs: Any) -> Any:
    """Drafts are the likeliest tokens, and the ratio uses the soft distribution that they were not drawn from."""
    return site.argmax_distribution(probs)


@defect("transformers #47932", "drafts", case=replace(TABLE, sampling={"top_k": 2}))
def raw_draft_distribution(site: Site, right: Any, self: Any, *args: Any) -> Any:
    """Drafts are drawn from the filtered distribution, and the raw one is handed to verification."""
    tokens, _, *rest = right(self, *args)
    raw = site.xp.exp(args[2][..., : tokens.shape[-1], :])
    return tokens, raw / raw.sum(-1)[..., None], *rest


@defect(COMMON, Site.wrong_rows)
def draft_distribution_at_another_temperature(site: Site, target: Any, draft: Any, *_: Any) -> Any:
    """The distribution reported for a draft is sharper than the one it was drawn from."""
    return target, draft**2 / (draft**2).sum(-1)[..., None]


@defect("llama.cpp #27694 (with p_min)", "drafts")
def unlikely_drafts_dropped(site: Site, right: Any, self: Any, *args: Any) -> Any:
    """A draft its own distribution finds unlikely is dropped, the others are verified as if nothing had been chosen."""
    tokens, probs, *rest = right(self, *args)
    likely = (probs * site.one_hot(tokens, probs)).sum(-1) >= 0.4
    kept = likely.cumprod(-1).sum(-1)
    if site.single:
        return tokens[:kept], probs[:kept], rest[0] or kept < len(tokens)
    num_draft, has_bonus_row = rest
    return tokens, probs, num_draft.minimum(kept), has_bonus_row | (kept < num_draft)


@defect("DeepSpec #31", drawn_from, at_least_late=1e-5)
def drafts_drawn_in_bfloat16(site: Site, probs: Any) -> Any:
    """Drafts are drawn from a distribution rounded to bfloat16, the ratio uses the unrounded one."""
    return site.bfloat16(probs)


def _verifies(site: Site, args: tuple[Any, ...]) -> bool:
    """Tell verification from the exact token and the drafts, for which the port has other arguments."""
    return site.single or len(args) == 5


def verified_by(site: Site, change: Callable[[Any], Any]) -> None:
    """Let verification work with a changed method; the exact token and the drafts keep the right one."""

    def wrong(right: Any, self: Any, *args: Any) -> Any:
        return right(change(self) if _verifies(site, args) else self, *args)

    site.wrong(*PLACES["target"](site), wrong)


@defect("vLLM #10198", verified_by, "top-p ignored by verification", case=replace(TABLE, sampling={"top_p": 0.75}))
def top_p_ignored(site: Site, method: Any) -> Any:
    """The target's rows are compared without the filter that the text asked for."""
    return replace(method, sampling=site.pkg.SamplingConfig())


@defect("lattice #388", verified_by, case=replace(TABLE, sampling={"temperature": 0.6}))
def temperature_ignored_by_verification(site: Site, method: Any) -> Any:
    """The verifier works at temperature 1 whatever was asked for."""
    return replace(method, sampling=site.pkg.SamplingConfig())


@defect("TensorRT-LLM #17701, vLLM #18902", verified_by, case=PENALTY)
def penalty_ignored_by_verification(site: Site, method: Any) -> Any:
    """Penalties are left out of speculative steps without a word."""
    return replace(method, processor=None)


def processed_after(site: Site, history: Callable[[list[Any]], list[Any]]) -> None:
    """Hand the processor another history of a block's drafts than those before the row."""

    def wrong(right: Any, self: Any, *args: Any) -> Any:
        if site.single:
            prefix, drafts, logits = args
            before = [history(drafts[:i].tolist()) for i in range(len(logits))]
            rows = [right(self, (*prefix, *seen), drafts[:0], logits[i : i + 1]) for i, seen in enumerate(before)]
            return site.xp.concatenate(rows)
        if not _verifies(site, args):
            return right(self, *args)
        state, logits, used, block, _ = args
        found = []
        for i in range(logits.shape[1]):
            seen = [0, *history(list(range(1, block.shape[1]))[:i])]
            found.append(right(self, state, logits[:, i : i + 1], used[:, i : i + 1], block[:, seen], len(seen)))
        return tuple(site.xp.cat(parts, 1) for parts in zip(*found, strict=True))

    site.wrong(*PLACES["target"](site), wrong)


@defect("SGLang #33643", processed_after, case=replace(PENALTY, seed=55), at_least_late=1e-4)
def penalty_for_the_last_draft_alone(site: Site, drafts: list[Any]) -> list[Any]:
    """Of several accepted tokens only the last enters the penalty's state."""
    return drafts[-1:]


@defect("vmlx-swift #357", processed_after, case=replace(PENALTY, seed=55))
def penalty_counts_drafts_twice(site: Site, drafts: list[Any]) -> list[Any]:
    """Accepted tokens enter the penalty's state when drafted and again when accepted."""
    return drafts * 2


@defect(REVIEW, "target", case=CASES["table, ties"])
def ties_dropped_by_verification(site: Site, right: Any, self: Any, *args: Any) -> Any:
    """Verification keeps exactly k tokens where others tie with the k-th."""
    found = right(self, *args)
    if not _verifies(site, args):
        return found
    probs = found if site.single else found[0]
    mine, other = probs[..., None], probs[..., None, :]
    lower = site.xp.tril(site.xp.ones((probs.shape[-1], probs.shape[-1])), -1) > 0
    kept = probs * (((other > mine) | ((other == mine) & lower)).sum(-1) < 2)
    kept = kept / kept.sum(-1)[..., None]
    return kept if site.single else (kept, found[1])


@defect("gpt-fast", at_least_late=1e-4)
def softmax_in_bfloat16(site: Site) -> None:
    """Distributions are made in the model's precision."""
    for home in ("methods.base",) if site.single else ("methods.base", "methods.speculative"):
        site.wrong(home, "probs_from_logits", lambda right, *args: site.bfloat16(right(*args)))
