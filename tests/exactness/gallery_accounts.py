"""Defects beside the distribution: cache, drafts, refusals, and what is told of a text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import gallery_checks as checks
from gallery_rows import models, moved_positions
from gallery_tools import COMMON, Defect, Site


def cut_to_nothing_keeps_all(site: Site) -> None:
    def wrong(right: Any, self: Any, length: Any) -> None:
        if site.xp.any(site.xp.asarray(length) > 0):
            right(self, length)

    site.wrong(site.module("model.cache").KVCache, "truncate", wrong)


def cut_anywhere(site: Site) -> None:
    def wrong(right: Any, self: Any, length: Any) -> None:
        if site.single:
            right(self, min(max(length, 0), self.length))
        else:
            right(self, length.clamp(min=0).minimum(self.lengths))

    site.wrong(site.module("model.cache").KVCache, "truncate", wrong)


def _is_lookahead(model: Any, inputs: Any) -> Any:
    """Say which rows of a table's pass are look-ahead vectors."""
    return inputs[..., model.vocab_size :].sum(-1) > 0


def draft_positions_moved(site: Site) -> None:
    moved_positions(site, 1, lambda model, inputs, positions: positions + _is_lookahead(model, inputs))


def drafts_without_some_text(site: Site) -> None:
    for model in models(site):

        def wrong(right: Any, self: Any, inputs: Any, cache: Any, *rest: Any) -> Any:
            site.passes += 1
            if site.passes != 1:
                return right(self, inputs, cache, *rest)
            count = inputs.shape[-2]
            drafts = _is_lookahead(self, inputs).reshape(-1, count).any(0)
            visible = site.xp.tril(site.xp.ones((count, count))) > 0
            visible = visible & ~(drafts[:, None] & ~drafts[None, :])
            return right(self, inputs, cache, None, visible)

        site.wrong(model, "hidden", wrong)


def any_vectors_will_do(site: Site) -> None:
    site.wrong(site.pkg.LookAhead, "check", lambda right, *args: None)


def nan_becomes_a_token(site: Site) -> None:
    if not site.single:
        for home in ("methods.base", "methods.speculative"):
            site.wrong(home, "largest_logits", lambda right, logits: site.xp.zeros_like(logits[..., 0]))
        return
    for home in ("methods.base", "methods.pass_two_call"):
        site.wrong(home, "has_distribution", lambda right, logits: True)
        site.wrong(home, "probs_from_logits", lambda right, logits, *rest: right(np.nan_to_num(logits), *rest))


def _record(site: Site, change: Any) -> None:
    home = "methods.base" if site.single else "methods.records"
    site.wrong(home, "verified_record", lambda right, *args, **options: change(right(*args, **options)))


def log_probabilities_of_0(site: Site) -> None:
    def change(record: Any) -> Any:
        zeros = tuple(0.0 for _ in record.log_probs) if site.single else record.log_probs * 0
        return replace(record, log_probs=zeros)

    _record(site, change)


def every_draft_counted(site: Site) -> None:
    _record(site, lambda r: replace(r, num_accepted=len(r.draft_tokens) if site.single else r.num_draft))


def _draft_on(site: Site) -> None:
    """Go on drafting after a drafted end of text; what is committed is cut all the same."""

    def ends_with(right: Any, self: Any, tokens: Any) -> Any:
        return False if site.drafting else right(self, tokens)

    def kept(right: Any, self: Any, tokens: Any, count: Any) -> Any:
        return (count, count < 0) if site.drafting else right(self, tokens, count)

    name, wrong = ("ends_with", ends_with) if site.single else ("num_kept", kept)
    site.wrong(site.state, name, wrong)


def counted_past_the_end(site: Site) -> None:
    _draft_on(site)


def streamed_past_the_end(site: Site) -> None:
    _draft_on(site)
    site.wrong(
        site.state,
        "commit",
        lambda right, self, record, *valid_length: (right(self, record, *valid_length)[0], record),
    )


def shown_too_early(site: Site) -> None:
    def after(right: Any, self: Any, tokens: Any) -> Any:
        text = right(self, tokens)
        text.news += text.rest
        return text

    site.wrong(site.module("text.token_decoder").TokenText, "after", after)


def drafts_past_the_limit(site: Site) -> None:
    state = site.state
    remaining, asked = state.remaining.fget, []

    def kept(right: Any, *args: Any) -> Any:  # where the text ends is known; only how far to draft is not asked
        asked.append(1)
        try:
            return right(*args)
        finally:
            asked.pop()

    if not site.single:
        site.wrong(state, "num_kept", kept)
    site.set(state, "remaining", property(lambda self: remaining(self) + (0 if asked else 9)))


ACCOUNTS = (
    Defect(
        "cut to nothing keeps all",
        "transformers #47433",
        "the rollback takes a length of 0 for none given",
        cut_to_nothing_keeps_all,
        check=checks.a_cache_cut_to_nothing_is_new,
        distribution="exact",
    ),
    Defect(
        "cut anywhere",
        "mlx-lm #1528",
        "a stale count rolls the cache back by a wrong number, and nobody complains",
        cut_anywhere,
        check=checks.a_cut_to_what_is_not_cached_is_refused,
        distribution="exact",
    ),
    Defect(
        "draft positions moved",
        "vLLM #26498",
        "look-ahead rows stand one position late: drafts are worse, the text is not",
        draft_positions_moved,
        check=checks.drafts_come_from_the_distribution_after_prefix_and_vectors,
        distribution="exact",
    ),
    Defect(
        "drafts without some of the text",
        "vLLM #49406 (PARD-2)",
        "look-ahead rows do not see the token before them: drafts are worse, the text is not",
        drafts_without_some_text,
        check=checks.drafts_come_from_the_distribution_after_prefix_and_vectors,
        distribution="exact",
    ),
    Defect(
        "vectors of another model",
        "llama.cpp #3812, EAGLE #258",
        "what drafts does not belong to the model, and is not refused",
        any_vectors_will_do,
        check=checks.vectors_of_another_model_are_refused,
        distribution="beside",
    ),
    Defect(
        "NaN becomes a token",
        "vLLM #20531, #53029",
        "a row that is not finite comes out as a token that looks valid",
        nan_becomes_a_token,
        check=checks.a_row_without_a_distribution_is_refused,
        distribution="exact",
    ),
    Defect(
        "log-probabilities of 0",
        "llama.cpp #27972",
        "tokens of speculative steps are reported as certain",
        log_probabilities_of_0,
        check=checks.log_probabilities_are_the_targets,
        distribution="exact",
    ),
    Defect(
        "every draft counted",
        "FlashInfer #879",
        "rejected drafts are counted among the accepted",
        every_draft_counted,
        check=checks.counters_count_what_is_committed,
        distribution="exact",
    ),
    Defect(
        "counted past the end",
        "SGLang #39826",
        "drafts accepted after an end of text are counted, though the text is cut",
        counted_past_the_end,
        check=checks.counters_count_what_is_committed,
        distribution="exact",
    ),
    Defect(
        "streamed past the end",
        "vLLM #47616",
        "tokens after an end of text are handed on, though the text is cut",
        streamed_past_the_end,
        check=checks.the_stream_is_the_text,
        distribution="exact",
    ),
    Defect(
        "shown too early",
        COMMON,
        "the beginning of a stop string is shown, and taken back when the rest has come",
        shown_too_early,
        check=checks.what_was_shown_is_never_taken_back,
        distribution="beside",
    ),
    Defect(
        "drafts past the limit",
        "vLLM #57941, exllamav2 #274",
        "look-ahead rows stand at positions that the model does not have",
        drafts_past_the_limit,
        check=checks.positions_stay_below_the_limit,
        distribution="exact",
    ),
)
