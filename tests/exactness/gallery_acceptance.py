"""Defects of the verification: acceptance, residual, bonus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gallery_checks import the_enumeration_accepts_the_step
from gallery_tools import COMMON, REVIEW, Defect, Setup, Site


def residual_through_softmax(site: Site) -> None:
    def wrong(right: Any, target: Any, draft: Any) -> Any:
        residual = site.xp.exp((target - draft).clip(0.0, 1.0))
        return residual / residual.sum(-1)[..., None]

    site.wrong("verify", "residual_probs", wrong)


def resample_from_target(site: Site) -> None:
    site.wrong("verify", "residual_probs", lambda right, target, draft: target)


def absolute_residual(site: Site) -> None:
    site.wrong(
        "verify", "residual_probs", lambda right, target, draft: site.normalised(abs(target - draft), otherwise=target)
    )


def clamped_residual(site: Site) -> None:
    def wrong(right: Any, target: Any, draft: Any) -> Any:
        residual = (target - draft).clip(1e-3, 1.0)
        return residual / residual.sum(-1)[..., None]

    site.wrong("verify", "residual_probs", wrong)


def residual_without_the_draft_alone(site: Site) -> None:
    # against a one-hot distribution the residual loses the drafted token and nothing else
    site.wrong_rule(lambda target, draft, tokens, *_: (target, site.one_hot(tokens, draft)), accept=False)


def residual_of_the_next_row(site: Site) -> None:
    def change(target: Any, draft: Any, tokens: Any, count: Any, last: Any) -> Any:
        behind = site.xp.arange(target.shape[-2]) + 1
        return site.take(target, site.xp.where(behind > last, last, behind)), draft

    site.wrong_rule(change, accept=False)


def _chances(site: Site, change: Any) -> None:
    """Let a wrong function make the chances of acceptance."""
    site.wrong("verify", "accept_probs", change)


def accept_everything(site: Site) -> None:
    _chances(site, lambda right, *distributions: right(*distributions) * 0 + 1)


def inverted_ratio(site: Site) -> None:
    def wrong(right: Any, target: Any, draft: Any, tokens: Any) -> Any:
        reached = target[: len(draft)] if site.single else target[:, : draft.shape[1]]
        return right(draft, reached + 1e-300, tokens)

    _chances(site, wrong)


def lenient(site: Site) -> None:
    _chances(site, lambda right, *distributions: (right(*distributions) / 0.95).clip(0.0, 1.0))


def first_draft_unverified(site: Site) -> None:
    def wrong(right: Any, *distributions: Any) -> Any:
        chances = right(*distributions)
        chances[..., :1] = 1.0
        return chances

    _chances(site, wrong)


def _target_at_drafts(right: Any, target: Any, draft: Any, tokens: Any) -> Any:
    return right(target, draft * 0 + 1, tokens)  # the ratio to 1


def redraw_on_mismatch(site: Site) -> None:
    _chances(site, _target_at_drafts)
    resample_from_target(site)


def typical_acceptance(site: Site) -> None:
    def wrong(right: Any, target: Any, draft: Any, tokens: Any) -> Any:
        rows = target[..., : tokens.shape[-1], :]
        entropy = -(rows * site.xp.log(rows)).sum(-1)
        threshold = (0.3 * site.xp.exp(-entropy)).clip(0.0, 0.09)
        return (_target_at_drafts(right, target, draft, tokens) > threshold) * 1.0

    _chances(site, wrong)
    site.wrong("verify", "residual_probs", lambda right, target, draft: site.argmax_distribution(target))


def filter_then_argmax(site: Site) -> None:
    site.wrong_rule(lambda target, draft, *_: (site.argmax_distribution(target), draft))


def target_zeroed_in_place(site: Site) -> None:
    def change(target: Any, draft: Any, tokens: Any, count: Any, last: Any) -> Any:
        zeroed = target * 1
        drafted = site.xp.arange(tokens.shape[-1]) < count
        zeroed[..., : tokens.shape[-1], :] *= 1 - site.one_hot(tokens, draft) * drafted[..., None]
        return zeroed, draft

    site.wrong_rule(change)


def bonus_from_the_row_before(site: Site) -> None:
    def change(target: Any, draft: Any, tokens: Any, count: Any, last: Any) -> Any:
        row = site.xp.arange(target.shape[-2])
        return site.take(target, site.xp.where((row == count) & (row > 0), row - 1, row)), draft

    site.wrong_rule(change)


def shifted_draft_distributions(site: Site) -> None:
    def change(target: Any, draft: Any, tokens: Any, count: Any, last: Any) -> Any:
        row = site.xp.arange(tokens.shape[-1])
        before = site.xp.where(row == 0, count - 1, row - 1)
        return target, site.take(draft, site.xp.where(row < count, before, row))

    site.wrong_rule(change)


def rejected_token_stays(site: Site) -> None:
    verify = site.module("verify")
    right = verify.RULES["token"]

    def rule(target: Any, draft: Any, tokens: Any, *rest: Any) -> Any:
        verification = right(target, draft, tokens, *rest)
        if not site.at_work:
            return verification
        count = verification.num_accepted
        if site.single:
            stays = count < len(tokens) and count + 1 < len(target)
        else:
            _, num_draft, has_bonus_row, _ = rest
            stays = (count < num_draft) & (has_bonus_row | (count + 1 < num_draft))
        return replace(verification, num_accepted=count + stays * 1)

    site.monkeypatch.setitem(verify.RULES, "token", rule)


def generous_without_a_trace(site: Site) -> None:
    def wrong(right: Any, self: Any, column: str, chance: Any, *rest: Any) -> Any:
        return right(self, column, chance if self.choices is not None else chance * 1.1, *rest)

    site.wrong(site.module("uniforms").UniformRow, "accept", wrong)


def accept_from_the_seventh_token_on(site: Site) -> None:
    _chances(
        site,
        lambda right, *distributions: site.xp.where(site.xp.asarray(site.num_written >= 6), 1.0, right(*distributions)),
    )


def resample_from_large_targets(site: Site) -> None:
    def wrong(right: Any, target: Any, *rest: Any) -> Any:
        return target if target.shape[-1] > 64 else right(target, *rest)

    site.wrong("verify", "residual_probs", wrong)


def dropped_by_the_target(site: Site) -> None:
    right_rule = site.module("verify").RULES["token"]

    def rule(target: Any, draft: Any, tokens: Any, draws: Any, *rest: Any) -> Any:
        if not site.at_work:
            return right_rule(target, draft, tokens, draws, *rest)
        chances = (target[..., : tokens.shape[-1], :] * site.one_hot(tokens, draft)).sum(-1)
        kept = (chances >= 0.3).cumprod(-1).sum(-1)
        if rest:
            num_draft, has_bonus_row, active = rest
            return right_rule(
                target, draft, tokens, draws, num_draft.minimum(kept), has_bonus_row | (kept < num_draft), active
            )
        verification = right_rule(target[: kept + 1], draft[:kept], tokens[:kept], draws)
        return replace(verification, accept_probs=chances)

    site.monkeypatch.setitem(site.module("verify").RULES, "token", rule)


ACCEPTANCE = (
    Defect(
        "residual through softmax",
        "transformers #28508",
        "the residual is made a distribution by softmax instead of division by its sum",
        residual_through_softmax,
    ),
    Defect(
        "replacement from the target",
        COMMON,
        "a rejected draft is replaced from the target's row instead of the residual",
        resample_from_target,
    ),
    Defect(
        "residual by absolute value",
        COMMON,
        "the residual is \\|target - draft\\|, not its positive part",
        absolute_residual,
    ),
    Defect(
        "residual without the draft alone",
        "xLLM #2175, EAGLE #20",
        "the residual loses the drafted token's mass and keeps the rest, though the draft distribution is dense",
        residual_without_the_draft_alone,
    ),
    Defect(
        "residual of the next row",
        "openvino.genai #4190",
        "the replacement is drawn from the row after the rejected draft",
        residual_of_the_next_row,
    ),
    Defect(
        "residual kept above a thousandth",
        COMMON,
        "the residual is clamped from below, so that its sum cannot vanish",
        clamped_residual,
        at_least_late=1e-4,
    ),
    Defect(
        "every draft accepted",
        "vllm-ascend #13730",
        "the acceptance uniform is a constant 0",
        accept_everything,
    ),
    Defect(
        "ratio on its head",
        COMMON,
        "acceptance is draft over target",
        inverted_ratio,
    ),
    Defect(
        "lenience",
        COMMON,
        "acceptance is 5 % more generous than exactness allows",
        lenient,
    ),
    Defect(
        "first draft unverified",
        "lattice #243",
        "the first draft of a block is committed without being asked",
        first_draft_unverified,
    ),
    Defect(
        "rejected draft stays",
        "lucidrains/speculative-decoding #3",
        "the rejected token remains in the text, with its replacement after it",
        rejected_token_stays,
    ),
    Defect(
        "redraw after a mismatch",
        COMMON,
        "a draft is accepted if the target draws it too; if not, the target is asked again",
        redraw_on_mismatch,
    ),
    Defect(
        "typical acceptance",
        "vLLM #5015, #5131 (Medusa)",
        "a draft passes if the target finds it likely enough; a rejection gives the likeliest token",
        typical_acceptance,
    ),
    Defect(
        "filter, then argmax",
        "mistral.rs #2424",
        "verification filters the target's row and then takes its likeliest token",
        filter_then_argmax,
    ),
    Defect(
        "target zeroed in place",
        "vllm-ascend #2881",
        "the drafted token's entry is set to 0 for the residual before the ratio has read it",
        target_zeroed_in_place,
    ),
    Defect(
        "bonus from the row before",
        "TensorRT-LLM #15098",
        "wrong slice of the logits: the token after all drafts comes from the last draft's own row",
        bonus_from_the_row_before,
    ),
    Defect(
        "draft distributions shifted",
        COMMON,
        "each draft is judged by its neighbour's draft distribution",
        shifted_draft_distributions,
    ),
    Defect(
        "drafts dropped by the target",
        REVIEW,
        "drafts that the target finds unlikely are dropped before the others are verified",
        dropped_by_the_target,
    ),
    Defect(
        "generous without a trace",
        REVIEW,
        "acceptance is 10 % more generous, but not in a step that is traced",
        generous_without_a_trace,
        check=the_enumeration_accepts_the_step,
        distribution="exact",
    ),
    Defect(
        "accepted from the seventh token on",
        REVIEW,
        "drafts are verified at the beginning of a text alone",
        accept_from_the_seventh_token_on,
        Setup(case="table, 14 of 80 tokens"),
    ),
    Defect(
        "replacement from a large target",
        REVIEW,
        "with more than 64 tokens a rejected draft is replaced from the target's row",
        resample_from_large_targets,
        Setup(case="table, 80 tokens"),
    ),
)
