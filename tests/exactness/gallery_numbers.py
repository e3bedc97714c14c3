"""Defects of the numbers that decide: uniforms that serve twice, edges, precision, seeds, neighbours."""

from __future__ import annotations

import itertools
from typing import Any

import gallery_checks as checks
from gallery_tools import REVIEW, Defect, Site


def _final_draw_from(site: Site, column: str, ledger: bool) -> None:
    """Draw the final token with the first uniform of another slot; without the ledger, nobody minds."""

    def wrong(right: Any, self: Any, name: str, probs: Any, index: int = 0, *rest: Any) -> Any:
        if name != "final":
            return right(self, name, probs, index, *rest)
        if not ledger:
            self._used.clear()
        return right(self, column, probs, 0, *rest)

    site.wrong(site.module("uniforms").UniformRow, "token" if site.single else "tokens", wrong)


def draft_noise_reused(site: Site) -> None:
    _final_draw_from(site, "draft", ledger=True)


def uniform_used_twice(site: Site) -> None:
    _final_draw_from(site, "accept", ledger=False)


def noise_reused_in_secret(site: Site) -> None:
    def wrong(right: Any, self: Any, name: str, *args: Any) -> Any:
        if name == "final":
            self._uniforms = self._uniforms * 1  # the caller's stay as they are, and so does the record
            self._uniforms[..., self._start["final"]] = self._uniforms[..., self._start["draft"]]
        return right(self, name, *args)

    site.wrong(site.module("uniforms").UniformRow, "token" if site.single else "tokens", wrong)


def accepted_at_equality(site: Site) -> None:
    def wrong(right: Any, self: Any, column: str, chance: Any, *rest: Any) -> Any:
        one = site.xp.ones_like(chance) if not site.single else 1.0
        return right(self, column, site.xp.nextafter(chance, one), *rest)  # u <= a is u < the number after a

    site.wrong(site.module("uniforms").UniformRow, "accept", wrong)


def residual_without_a_guard(site: Site) -> None:
    def wrong(right: Any, target: Any, draft: Any) -> Any:
        residual = (target - draft).clip(0.0, 1.0)
        return residual / residual.sum(-1)[..., None]

    site.wrong("verify", "residual_probs", wrong)


def coarse_uniforms(site: Site) -> None:
    site.wrong(
        "generation", _stream(site), lambda right, *key, **where: site.xp.floor(right(*key, **where) * 256) / 256
    )


def seed_constant(site: Site) -> None:
    site.wrong("generation", _stream(site), lambda right, seed, *rest, **where: right(0, *rest, **where))


def seed_ignored(site: Site) -> None:
    clock = itertools.count()
    site.wrong("generation", _stream(site), lambda right, seed, *rest, **where: right(next(clock), *rest, **where))


def uniforms_by_turn(site: Site) -> None:
    """Hand out uniforms in the order in which they are asked for, as one generator for all requests does."""
    turn = itertools.count()

    def wrong(right: Any, seed: int, request: int, step: int, *rest: Any, **where: Any) -> Any:
        return right(seed, next(turn), 0, *rest, **where)

    def wrong_together(
        right: Any, seed: int, requests: list[int], step: int, num_steps: int, *rest: Any, **where: Any
    ) -> Any:
        turns = [[next(turn) for _ in requests] for _ in range(num_steps)]
        return site.xp.cat([right(seed, each, 0, 1, *rest, **where) for each in turns])

    site.wrong("generation", _stream(site), wrong if site.single else wrong_together)


def uniforms_for_two_steps(site: Site) -> None:
    """Hand out the uniforms of each step twice, to two steps in turn."""

    def wrong(right: Any, seed: int, request: int, step: int, *rest: Any, **where: Any) -> Any:
        return right(seed, request, step // 2, *rest, **where)

    def wrong_together(right: Any, *args: Any, **where: Any) -> Any:
        rows = right(*args, **where)
        return rows[[step // 2 for step in range(len(rows))]]

    site.wrong("generation", _stream(site), wrong if site.single else wrong_together)


def generous_beside_others(site: Site) -> None:
    def wrong(right: Any, self: Any, column: str, chance: Any, *rest: Any) -> Any:
        generous = chance.clone()
        generous[2:] = (chance[2:] * 1.1).clamp(max=1.0)
        return right(self, column, generous, *rest)

    site.wrong(site.module("uniforms").UniformRow, "accept", wrong)


def _stream(site: Site) -> str:
    """Return what makes uniforms: the port makes those of many steps at once."""
    return "uniform_stream" if site.single else "uniform_streams"


def rows_written_into_others(site: Site) -> None:
    def wrong(right: Any, self: Any, layer: int, keys: Any, values: Any, named_uniforms: Any) -> Any:
        return right(self, layer, keys[:1].expand_as(keys), values[:1].expand_as(values), named_uniforms)

    site.wrong(site.module("model.cache").KVCache, "write", wrong)


NUMBERS = (
    Defect(
        "draft noise reused",
        "vLLM #47386",
        "the replacement of a rejected draft is drawn with the noise that drew the draft",
        draft_noise_reused,
        check=checks.a_uniform_serves_one_decision,
        distribution="refused",
    ),
    Defect(
        "noise reused in secret",
        "vLLM #47386",
        "the same, and the record names another uniform than the one that decided",
        noise_reused_in_secret,
        check=checks.the_enumeration_accepts_the_step,
        distribution="refused",
    ),
    Defect(
        "uniform used twice",
        "FlashInfer #424",
        "one uniform decides on an acceptance and draws the last token, and no ledger is kept",
        uniform_used_twice,
        check=checks.the_enumeration_accepts_the_step,
        distribution="refused",
    ),
    Defect(
        "accepted at equality",
        "SGLang #35798, transformers 5.23.0",
        "a draft is accepted if the uniform is at most the ratio: at 0, one that the target never says",
        accepted_at_equality,
        check=checks.an_impossible_draft_is_rejected_at_a_uniform_of_0,
        distribution="exact",
    ),
    Defect(
        "residual of nothing",
        "transformers 5.23.0",
        "distributions one rounding apart leave a residual of 0, which is divided by its sum",
        residual_without_a_guard,
        check=checks.a_residual_of_one_ulp_is_a_distribution,
        distribution="exact",
    ),
    Defect(
        "uniforms in bfloat16",
        "gpt-fast",
        "uniforms are made in the model's precision: 256 of them, and one in 256 is 0",
        coarse_uniforms,
        check=checks.uniforms_have_53_bits,
        distribution="beside",
    ),
    Defect(
        "the same text for every seed",
        "vLLM #13196",
        "the seed never reaches the generator",
        seed_constant,
        check=checks.another_seed_gives_another_text,
        distribution="beside",
    ),
    Defect(
        "another text for the same seed",
        "vLLM #6038, lattice #974",
        "a clock decides instead of the seed",
        seed_ignored,
        check=checks.the_same_seed_gives_the_same_text,
        distribution="beside",
    ),
    Defect(
        "uniforms by turn",
        "TensorRT-LLM #19487",
        "requests share one generator, so a text depends on what runs beside it",
        uniforms_by_turn,
        check=checks.a_row_of_a_batch_is_the_row_alone,
        distribution="beside",
    ),
    Defect(
        "uniforms for two steps",
        REVIEW,
        "the loop hands out the uniforms of a step twice",
        uniforms_for_two_steps,
        check=checks.texts_come_as_often_as_by_brute_force,
        distribution="beside",
    ),
    Defect(
        "generous in later rows",
        REVIEW,
        "acceptance is 10 % more generous from the third row of a batch on",
        generous_beside_others,
        check=checks.the_enumeration_accepts_the_step,
        distribution="refused",
        packages=("gpu",),
    ),
    Defect(
        "one row written into all",
        "flash-attention #2779",
        "a wrong index writes one sequence's keys and values into every row of the batch (the port alone has batches)",
        rows_written_into_others,
        check=checks.a_row_of_a_batch_is_the_row_alone,
        distribution="beside",
        packages=("gpu",),
    ),
)
