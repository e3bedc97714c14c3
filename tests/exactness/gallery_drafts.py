"""Defects of the distributions: a draft's that is not the one reported, a target's without some of its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gallery_tools import COMMON, REVIEW, Defect, Setup, Site
from pass_sampling.reference.exactness.cases import penalty


def _draw_drafts_from(site: Site, change: Callable[[Any], Any]) -> None:
    """Draw drafts from a changed distribution, while the distribution that is reported stays."""

    def wrong(right: Any, self: Any, column: str, probs: Any, *rest: Any) -> Any:
        return right(self, column, change(probs) if column == "draft" else probs, *rest)

    site.wrong(site.module("uniforms").UniformRow, "token" if site.single else "tokens", wrong)


def argmax_drafts(site: Site) -> None:
    _draw_drafts_from(site, site.argmax_distribution)


def bfloat16_drafts(site: Site) -> None:
    _draw_drafts_from(site, site.bfloat16)


def raw_draft_distribution(site: Site) -> None:
    def wrong(right: Any, self: Any, *args: Any) -> Any:
        tokens, _, *rest = right(self, *args)
        logits = args[2][..., : tokens.shape[-1], :]
        raw = site.xp.exp(logits)
        return tokens, raw / raw.sum(-1)[..., None], *rest

    site.wrong(site.pkg.PaSS, "_draft", wrong)


def sharper_draft_distribution(site: Site) -> None:
    site.wrong_rule(lambda target, draft, *_: (target, draft**2 / (draft**2).sum(-1)[..., None]))


def unlikely_drafts_dropped(site: Site) -> None:
    def wrong(right: Any, self: Any, *args: Any) -> Any:
        tokens, probs, *rest = right(self, *args)
        likely = (probs * site.one_hot(tokens, probs)).sum(-1) >= 0.4
        kept = likely.cumprod(-1).sum(-1)
        if site.single:
            return tokens[:kept], probs[:kept], rest[0] or kept < len(tokens)
        num_draft, has_bonus_row = rest
        return tokens, probs, num_draft.minimum(kept), has_bonus_row | (kept < num_draft)

    site.wrong(site.pkg.PaSS, "_draft", wrong)


def _verify_as(site: Site, **changes: Any) -> None:
    """Let verification work with other settings than the text's; the exact token and the drafts keep theirs."""

    def wrong(right: Any, self: Any, *args: Any) -> Any:
        verifies = (
            site.single or len(args) == 5
        )  # the port asks for the exact token and the drafts with other arguments
        return right(replace(self, **changes) if verifies else self, *args)

    site.wrong(site.pkg.PaSS, "chain_probs", wrong)


def top_p_ignored(site: Site) -> None:
    _verify_as(site, sampling=site.pkg.SamplingConfig())


def temperature_ignored(site: Site) -> None:
    _verify_as(site, sampling=site.pkg.SamplingConfig())


def penalty_ignored(site: Site) -> None:
    _verify_as(site, processor=None)


def _penalise(site: Site, history: Callable[[list[Any]], list[Any]]) -> None:
    """Let the processor see another history of a block's drafts than the one after which a row stands."""

    def wrong(right: Any, self: Any, *args: Any) -> Any:
        if site.single:
            prefix, drafts, logits = args
            before = [history(drafts[:i].tolist()) for i in range(len(logits))]
            rows = [right(self, (*prefix, *seen), drafts[:0], logits[i : i + 1]) for i, seen in enumerate(before)]
            return site.xp.concatenate(rows)
        if len(args) != 5:
            return right(self, *args)
        state, logits, used, block, _ = args
        columns = list(range(1, block.shape[1]))
        distributions, largest = [], []
        for i in range(logits.shape[1]):
            seen = [0, *history(columns[:i])]
            found = right(self, state, logits[:, i : i + 1], used[:, i : i + 1], block[:, seen], len(seen))
            distributions.append(found[0])
            largest.append(found[1])
        return site.xp.cat(distributions, 1), site.xp.cat(largest, 1)

    site.wrong(site.pkg.PaSS, "chain_probs", wrong)


def penalty_for_the_last_alone(site: Site) -> None:
    _penalise(site, lambda drafts: drafts[-1:])


def penalty_twice(site: Site) -> None:
    _penalise(site, lambda drafts: drafts * 2)


def ties_dropped(site: Site) -> None:
    """Let verification keep exactly two tokens, the lower ids of those that tie."""

    def two_likeliest(probs: Any) -> Any:
        mine, other = probs[..., None], probs[..., None, :]
        lower = site.xp.tril(site.xp.ones((probs.shape[-1], probs.shape[-1])), -1) > 0
        kept = probs * (((other > mine) | ((other == mine) & lower)).sum(-1) < 2)
        return kept / kept.sum(-1)[..., None]

    def wrong(right: Any, self: Any, *args: Any) -> Any:
        found = right(self, *args)
        if site.single:
            return two_likeliest(found)
        return (two_likeliest(found[0]), found[1]) if len(args) == 5 else found

    site.wrong(site.pkg.PaSS, "chain_probs", wrong)


def bfloat16_softmax(site: Site) -> None:
    def wrong(right: Any, *args: Any) -> Any:
        return site.bfloat16(right(*args))

    for home in ("methods.base", "methods.pass_two_call" if site.single else "methods.speculative"):
        site.wrong(home, "probs_from_logits", wrong)


DRAFTS = (
    Defect(
        "argmax drafts, soft distribution",
        "jaymody/speculative-sampling #3, transformers #30778",
        "drafts are the likeliest tokens, and the ratio uses the soft distribution that they were not drawn from",
        argmax_drafts,
    ),
    Defect(
        "raw draft distribution",
        "transformers #47932",
        "drafts are drawn from the filtered distribution, and the raw one is handed to verification",
        raw_draft_distribution,
        Setup(sampling=(("top_k", 2),)),
    ),
    Defect(
        "draft distribution at another temperature",
        COMMON,
        "the distribution reported for a draft is sharper than the one it was drawn from",
        sharper_draft_distribution,
    ),
    Defect(
        "unlikely drafts dropped",
        "llama.cpp #27694 (with p_min)",
        "a draft its own distribution finds unlikely is dropped, the others are verified as if nothing had been chosen",
        unlikely_drafts_dropped,
    ),
    Defect(
        "drafts drawn in bfloat16",
        "DeepSpec #31",
        "drafts are drawn from a distribution rounded to bfloat16, the ratio uses the unrounded one",
        bfloat16_drafts,
        at_least_late=1e-5,
    ),
)

TARGETS = (
    Defect(
        "top-p ignored by verification",
        "vLLM #10198",
        "the target's rows are compared without the filter that the text asked for",
        top_p_ignored,
        Setup(sampling=(("top_p", 0.75),)),
    ),
    Defect(
        "temperature ignored by verification",
        "lattice #388",
        "the verifier works at temperature 1 whatever was asked for",
        temperature_ignored,
        Setup(sampling=(("temperature", 0.6),)),
    ),
    Defect(
        "penalty ignored by verification",
        "TensorRT-LLM #17701, vLLM #18902",
        "penalties are left out of speculative steps without a word",
        penalty_ignored,
        Setup(processor=penalty),
    ),
    Defect(
        "penalty for the last draft alone",
        "SGLang #33643",
        "of several accepted tokens only the last enters the penalty's state",
        penalty_for_the_last_alone,
        Setup(processor=penalty, seed=55),
        at_least_late=1e-4,
    ),
    Defect(
        "penalty counts drafts twice",
        "vmlx-swift #357",
        "accepted tokens enter the penalty's state when drafted and again when accepted",
        penalty_twice,
        Setup(processor=penalty, seed=55),
    ),
    Defect(
        "ties dropped by verification",
        REVIEW,
        "verification keeps exactly k tokens where others tie with the k-th",
        ties_dropped,
        Setup(case="table, ties"),
    ),
    Defect(
        "softmax in bfloat16",
        "gpt-fast",
        "distributions are made in the model's precision",
        bfloat16_softmax,
        at_least_late=1e-4,
    ),
)
