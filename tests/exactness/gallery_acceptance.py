"""Defects of the verification: acceptance, residual, bonus."""

from dataclasses import replace
from functools import partial
from typing import Any

from gallery_checks import the_enumeration_accepts_the_step
from gallery_tools import CASES, COMMON, REVIEW, Defect, Site, defects

ACCEPTANCE: list[Defect] = []
defect = defects(ACCEPTANCE)
residual_rows = partial(Site.wrong_rows, accept=False)


@defect("transformers #28508", "residual")
def residual_through_softmax(site: Site, right: Any, target: Any, draft: Any) -> Any:
    """The residual is made a distribution by softmax instead of division by its sum."""
    residual = site.xp.exp((target - draft).clip(0.0, 1.0))
    return residual / residual.sum(-1)[..., None]


@defect(COMMON, "residual")
def replacement_from_the_target(site: Site, right: Any, target: Any, draft: Any) -> Any:
    """A rejected draft is replaced from the target's row instead of the residual."""
    return target


@defect(COMMON, "residual")
def residual_by_absolute_value(site: Site, right: Any, target: Any, draft: Any) -> Any:
    """The residual is |target - draft|, not its positive part."""
    residual = abs(target - draft)
    total = residual.sum(-1)[..., None]
    return site.xp.where(total > 0, residual / (total + (total == 0)), target)


@defect("xLLM #2175, EAGLE #20", residual_rows)
def residual_without_the_draft_alone(site: Site, target: Any, draft: Any, tokens: Any, *_: Any) -> Any:
    """The residual loses the drafted token's mass and keeps the rest, though the draft distribution is dense."""
    return target, site.one_hot(tokens, draft)  # against which the residual loses the token and nothing else


@defect("openvino.genai #4190", residual_rows)
def residual_of_the_next_row(site: Site, target: Any, draft: Any, tokens: Any, count: Any, last: Any) -> Any:
    """The replacement is drawn from the row after the rejected draft."""
    following = site.xp.arange(target.shape[-2]) + 1
    return site.take(target, site.xp.where(following > last, last, following)), draft


@defect(COMMON, "residual", at_least_late=1e-4)
def residual_kept_above_a_thousandth(site: Site, right: Any, target: Any, draft: Any) -> Any:
    """The residual is clamped from below, so that its sum cannot vanish."""
    residual = (target - draft).clip(1e-3, 1.0)
    return residual / residual.sum(-1)[..., None]


@defect("vllm-ascend #13730", "chances")
def every_draft_accepted(site: Site, right: Any, *distributions: Any) -> Any:
    """The acceptance uniform is a constant 0."""
    return right(*distributions) * 0 + 1


@defect(COMMON, "chances")
def ratio_on_its_head(site: Site, right: Any, target: Any, draft: Any, tokens: Any) -> Any:
    """Acceptance is draft over target."""
    reached = target[: len(draft)] if site.single else target[:, : draft.shape[1]]
    return right(draft, reached + 1e-300, tokens)


@defect(COMMON, "chances")
def lenience(site: Site, right: Any, *distributions: Any) -> Any:
    """Acceptance is 5 % more generous than exactness allows."""
    return (right(*distributions) / 0.95).clip(0.0, 1.0)


@defect("lattice #243", "chances")
def first_draft_unverified(site: Site, right: Any, *distributions: Any) -> Any:
    """The first draft of a block is committed without being asked."""
    chances = right(*distributions)
    chances[..., :1] = 1.0
    return chances


@defect("lucidrains/speculative-decoding #3", "rule")
def rejected_draft_stays(site: Site, right: Any, target: Any, draft: Any, tokens: Any, *rest: Any) -> Any:
    """The rejected token remains in the text, with its replacement after it."""
    verification = right(target, draft, tokens, *rest)
    count = verification.num_accepted
    if site.single:
        stays = count < len(tokens) and count + 1 < len(target)
    else:
        _, num_draft, has_bonus_row, _ = rest
        stays = (count < num_draft) & (has_bonus_row | (count + 1 < num_draft))
    return replace(verification, num_accepted=count + stays * 1)


def _target_at_drafts(right: Any, target: Any, draft: Any, tokens: Any) -> Any:
    return right(target, draft * 0 + 1, tokens)  # the ratio to 1


@defect(COMMON)
def redraw_after_a_mismatch(site: Site) -> None:
    """A draft is accepted if the target draws it too; if not, the target is asked again."""
    site.wrong("verify", "accept_probs", _target_at_drafts)
    replacement_from_the_target(site)


@defect("vLLM #5015, #5131 (Medusa)")
def typical_acceptance(site: Site) -> None:
    """A draft passes if the target finds it likely enough; a rejection gives the likeliest token."""

    def wrong(right: Any, target: Any, draft: Any, tokens: Any) -> Any:
        rows = target[..., : tokens.shape[-1], :]
        entropy = -(rows * site.xp.log(rows)).sum(-1)
        threshold = (0.3 * site.xp.exp(-entropy)).clip(0.0, 0.09)
        return (_target_at_drafts(right, target, draft, tokens) > threshold) * 1.0

    site.wrong("verify", "accept_probs", wrong)
    site.wrong("verify", "residual_probs", lambda right, target, draft: site.argmax_distribution(target))


@defect("mistral.rs #2424", Site.wrong_rows, "filter, then argmax")
def filter_then_argmax(site: Site, target: Any, draft: Any, *_: Any) -> Any:
    """Verification filters the target's row and then takes its likeliest token."""
    return site.argmax_distribution(target), draft


@defect("vllm-ascend #2881", Site.wrong_rows)
def target_zeroed_in_place(site: Site, target: Any, draft: Any, tokens: Any, count: Any, last: Any) -> Any:
    """The drafted token's entry is set to 0 for the residual before the ratio has read it."""
    zeroed = target * 1
    drafted = site.xp.arange(tokens.shape[-1]) < count
    zeroed[..., : tokens.shape[-1], :] *= 1 - site.one_hot(tokens, draft) * drafted[..., None]
    return zeroed, draft


@defect("TensorRT-LLM #15098", Site.wrong_rows)
def bonus_from_the_row_before(site: Site, target: Any, draft: Any, tokens: Any, count: Any, last: Any) -> Any:
    """Wrong slice of the logits: the token after all drafts comes from the last draft's own row."""
    row = site.xp.arange(target.shape[-2])
    return site.take(target, site.xp.where((row == count) & (row > 0), row - 1, row)), draft


@defect(COMMON, Site.wrong_rows)
def draft_distributions_shifted(site: Site, target: Any, draft: Any, tokens: Any, count: Any, last: Any) -> Any:
    """Each draft is verified with its neighbour's draft distribution."""
    row = site.xp.arange(tokens.shape[-1])
    before = site.xp.where(row == 0, count - 1, row - 1)
    return target, site.take(draft, site.xp.where(row < count, before, row))


@defect(REVIEW, "rule")
def drafts_dropped_by_the_target(site: Site, right: Any, target: Any, draft: Any, tokens: Any, *rest: Any) -> Any:
    """Drafts that the target finds unlikely are dropped before the others are verified."""
    chances = (target[..., : tokens.shape[-1], :] * site.one_hot(tokens, draft)).sum(-1)
    kept = (chances >= 0.3).cumprod(-1).sum(-1)
    if site.single:
        verification = right(target[: kept + 1], draft[:kept], tokens[:kept], *rest)
        return replace(verification, accept_probs=chances)
    draws, num_draft, has_bonus_row, active = rest
    has_bonus_row = has_bonus_row | (kept < num_draft)
    return right(target, draft, tokens, draws, num_draft.minimum(kept), has_bonus_row, active)


@defect(REVIEW, "acceptance", check=the_enumeration_accepts_the_step, distribution="exact")
def generous_without_a_trace(site: Site, right: Any, self: Any, column: str, chance: Any, *rest: Any) -> Any:
    """Acceptance is 10 % more generous, but not in a step that is traced."""
    return right(self, column, chance if self.choices is not None else chance * 1.1, *rest)


@defect(REVIEW, "chances", case=CASES["table, 14 of 80 tokens"])
def accepted_from_the_seventh_token_on(site: Site, right: Any, *distributions: Any) -> Any:
    """Drafts are verified at the beginning of a text alone."""
    return site.xp.where(site.xp.asarray(site.num_written >= 6), 1.0, right(*distributions))


@defect(REVIEW, "residual", case=CASES["table, 80 tokens"])
def replacement_from_a_large_target(site: Site, right: Any, target: Any, draft: Any) -> Any:
    """With more than 64 tokens a rejected draft is replaced from the target's row."""
    return target if target.shape[-1] > 64 else right(target, draft)
