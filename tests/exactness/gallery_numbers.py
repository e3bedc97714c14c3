"""Defects of the numbers that decide: uniforms that serve twice, edges, precision, seeds, neighbours."""

import itertools
from typing import Any

import gallery_checks as checks
from gallery_tools import PLACES, REVIEW, Defect, Site, defects

NUMBERS: list[Defect] = []
defect = defects(NUMBERS)


@defect("vLLM #47386", "draws", check=checks.a_uniform_serves_one_decision, distribution="refused")
def draft_noise_reused(site: Site, right: Any, self: Any, name: str, probs: Any, index: int = 0, *rest: Any) -> Any:
    """The replacement of a rejected draft is drawn with the noise that drew the draft."""
    return right(self, "draft", probs, 0, *rest) if name == "final" else right(self, name, probs, index, *rest)


@defect("vLLM #47386", "draws", check=checks.the_enumeration_accepts_the_step, distribution="refused")
def noise_reused_in_secret(site: Site, right: Any, self: Any, name: str, *args: Any) -> Any:
    """The same, and the record names another uniform than the one that decided."""
    if name == "final":
        self._uniforms = self._uniforms * 1  # the caller's stay as they are, and so does the record
        self._uniforms[..., self._start["final"]] = self._uniforms[..., self._start["draft"]]
    return right(self, name, *args)


@defect("FlashInfer #424", "draws", check=checks.the_enumeration_accepts_the_step, distribution="refused")
def uniform_used_twice(site: Site, right: Any, self: Any, name: str, probs: Any, index: int = 0, *rest: Any) -> Any:
    """One uniform decides on an acceptance and draws the last token, and no ledger is kept."""
    if name != "final":
        return right(self, name, probs, index, *rest)
    self._used.clear()
    return right(self, "accept", probs, 0, *rest)


@defect(
    "SGLang #35798, transformers 5.23.0",
    "acceptance",
    check=checks.an_impossible_draft_is_rejected_at_a_uniform_of_0,
    distribution="exact",
)
def accepted_at_equality(site: Site, right: Any, self: Any, column: str, chance: Any, *rest: Any) -> Any:
    """A draft is accepted if the uniform is at most the ratio: at 0, one that the target never draws."""
    one = 1.0 if site.single else site.xp.ones_like(chance)
    return right(self, column, site.xp.nextafter(chance, one), *rest)  # u <= a is u < the number after a


@defect("transformers 5.23.0", "residual", check=checks.a_residual_of_one_ulp_is_a_distribution, distribution="exact")
def residual_of_nothing(site: Site, right: Any, target: Any, draft: Any) -> Any:
    """Distributions one rounding apart leave a residual of 0, which is divided by its sum."""
    residual = (target - draft).clip(0.0, 1.0)
    return residual / residual.sum(-1)[..., None]


@defect("gpt-fast", "streams", check=checks.uniforms_have_53_bits, distribution="beside")
def uniforms_in_bfloat16(site: Site, right: Any, *key: Any, **where: Any) -> Any:
    """Uniforms are made in the model's precision: 256 of them, and one in 256 is 0."""
    return site.xp.floor(right(*key, **where) * 256) / 256


@defect("vLLM #13196", "streams", check=checks.another_seed_gives_another_text, distribution="beside")
def the_same_text_for_every_seed(site: Site, right: Any, seed: int, *rest: Any, **where: Any) -> Any:
    """The seed never reaches the generator."""
    return right(0, *rest, **where)


@defect("vLLM #6038, lattice #974", check=checks.the_same_seed_gives_the_same_text, distribution="beside")
def another_text_for_the_same_seed(site: Site) -> None:
    """A clock decides instead of the seed."""
    clock = itertools.count()
    site.wrong(*PLACES["streams"](site), lambda right, seed, *rest, **where: right(next(clock), *rest, **where))


@defect("TensorRT-LLM #19487", check=checks.a_row_of_a_batch_is_the_row_alone, distribution="beside")
def uniforms_by_turn(site: Site) -> None:
    """Requests share one generator, so a text depends on what runs beside it."""
    turn = itertools.count()

    def wrong(right: Any, seed: int, request: int, step: int, *rest: Any, **where: Any) -> Any:
        return right(seed, next(turn), 0, *rest, **where)

    def wrong_together(
        right: Any, seed: int, requests: list[int], step: int, num_steps: int, *rest: Any, **where: Any
    ) -> Any:
        turns = [[next(turn) for _ in requests] for _ in range(num_steps)]
        return site.xp.cat([right(seed, each, 0, 1, *rest, **where) for each in turns])

    site.wrong(*PLACES["streams"](site), wrong if site.single else wrong_together)


@defect(REVIEW, "streams", check=checks.texts_come_as_often_as_by_brute_force, distribution="beside")
def uniforms_for_two_steps(site: Site, right: Any, seed: int, request: Any, step: int, *rest: Any, **where: Any) -> Any:
    """The loop hands out the uniforms of a step twice."""
    if site.single:
        return right(seed, request, step // 2, *rest, **where)
    rows = right(seed, request, step, *rest, **where)  # of many steps
    return rows[[each // 2 for each in range(len(rows))]]


@defect(REVIEW, "acceptance", check=checks.the_enumeration_accepts_the_step, distribution="refused", packages=("gpu",))
def generous_in_later_rows(site: Site, right: Any, self: Any, column: str, chance: Any, *rest: Any) -> Any:
    """Acceptance is 10 % more generous from the third row of a batch on."""
    generous = chance.clone()
    generous[2:] = (chance[2:] * 1.1).clamp(max=1.0)
    return right(self, column, generous, *rest)


@defect(
    "flash-attention #2779",
    "cache",
    check=checks.a_row_of_a_batch_is_the_row_alone,
    distribution="beside",
    packages=("gpu",),
)
def one_row_written_into_all(site: Site, right: Any, self: Any, layer: int, keys: Any, values: Any, *rest: Any) -> Any:
    """A wrong index writes one sequence's keys and values into every row of the batch (the port alone has batches)."""
    return right(self, layer, keys[:1].expand_as(keys), values[:1].expand_as(values), *rest)
