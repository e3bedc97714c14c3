"""Defects beside the distribution: cache, drafts, refusals, and what is told of a text."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import gallery_checks as checks
from gallery_ends import draft_on
from gallery_rows import models, moved_positions
from gallery_tools import COMMON, Defect, Site, defects

ACCOUNTS: list[Defect] = []
defect = defects(ACCOUNTS)
exact = partial(defect, distribution="exact")
beside = partial(defect, distribution="beside")


@exact("transformers #47433", "rollback", check=checks.a_cache_cut_to_nothing_is_new)
def cut_to_nothing_keeps_all(site: Site, right: Any, self: Any, length: Any) -> None:
    """The rollback takes a length of 0 for none given."""
    if site.xp.any(site.xp.asarray(length) > 0):
        right(self, length)


@exact("mlx-lm #1528", "rollback", check=checks.a_cut_to_what_is_not_cached_is_refused)
def cut_anywhere(site: Site, right: Any, self: Any, length: Any) -> None:
    """A stale count rolls the cache back by a wrong number, and nobody complains."""
    right(self, min(max(length, 0), self.length) if site.single else length.clamp(min=0).minimum(self.lengths))


def _is_lookahead(model: Any, inputs: Any) -> Any:
    """Say which rows of a table's pass are look-ahead vectors."""
    return inputs[..., model.vocab_size :].sum(-1) > 0


@exact(
    "vLLM #26498", partial(moved_positions, 1), check=checks.drafts_come_from_the_distribution_after_prefix_and_vectors
)
def draft_positions_moved(site: Site, model: Any, inputs: Any, positions: Any) -> Any:
    """Look-ahead rows are one position late: drafts are worse, the text is not."""
    return positions + _is_lookahead(model, inputs)


@exact("vLLM #49406 (PARD-2)", check=checks.drafts_come_from_the_distribution_after_prefix_and_vectors)
def drafts_without_some_of_the_text(site: Site) -> None:
    """Look-ahead rows do not see the token before them: drafts are worse, the text is not."""

    def wrong(right: Any, self: Any, inputs: Any, cache: Any, *rest: Any) -> Any:
        site.passes += 1
        if site.passes != 1:
            return right(self, inputs, cache, *rest)
        count = inputs.shape[-2]
        drafts = _is_lookahead(self, inputs).reshape(-1, count).any(0)
        visible = site.xp.tril(site.xp.ones((count, count))) > 0
        return right(self, inputs, cache, None, visible & ~(drafts[:, None] & ~drafts[None, :]))

    for model in models(site):
        site.wrong(model, "hidden", wrong)


@beside("llama.cpp #3812, EAGLE #258", check=checks.vectors_of_another_model_are_refused)
def vectors_of_another_model(site: Site) -> None:
    """What drafts does not belong to the model, and is not refused."""
    site.wrong(site.pkg.LookAhead, "check", lambda right, *args: None)


@exact("vLLM #20531, #53029", name="NaN becomes a token", check=checks.a_row_without_a_distribution_is_refused)
def nan_becomes_a_token(site: Site) -> None:
    """A row that is not finite comes out as a token that looks valid."""
    if not site.single:
        for home in ("methods.base", "methods.speculative"):
            site.wrong(home, "largest_logits", lambda right, logits: site.xp.zeros_like(logits[..., 0]))
        return
    site.wrong("methods.base", "has_distribution", lambda right, logits: True)
    site.wrong("methods.base", "probs_from_logits", lambda right, logits, *rest: right(np.nan_to_num(logits), *rest))


@exact("llama.cpp #27972", "records", "log-probabilities of 0", check=checks.log_probabilities_are_the_targets)
def log_probabilities_of_0(site: Site, right: Any, *args: Any, **options: Any) -> Any:
    """Tokens of speculative steps are reported as certain."""
    record = right(*args, **options)
    return replace(record, log_probs=(0.0,) * len(record.log_probs) if site.single else record.log_probs * 0)


@exact("FlashInfer #879", "records", check=checks.counters_count_what_is_committed)
def every_draft_counted(site: Site, right: Any, *args: Any, **options: Any) -> Any:
    """Rejected drafts are counted among the accepted."""
    record = right(*args, **options)
    return replace(record, num_accepted=len(record.draft_tokens) if site.single else record.num_draft)


@exact("SGLang #39826", check=checks.counters_count_what_is_committed)
def counted_past_the_end(site: Site) -> None:
    """Drafts accepted after an end of text are counted, though the text is cut."""
    draft_on(site)


@exact("vLLM #47616", check=checks.the_stream_is_the_text)
def streamed_past_the_end(site: Site) -> None:
    """Tokens after an end of text are handed on, though the text is cut."""

    def commit(right: Any, self: Any, record: Any, *valid_length: Any) -> Any:
        return right(self, record, *valid_length)[0], record

    draft_on(site)
    site.wrong(site.state, "commit", commit)


@beside(COMMON, check=checks.what_was_shown_is_never_taken_back)
def shown_too_early(site: Site) -> None:
    """The beginning of a stop string is shown, and taken back when the rest has come."""

    def after(right: Any, self: Any, tokens: Any) -> Any:
        text = right(self, tokens)
        text.news += text.rest
        return text

    site.wrong(site.module("text.token_decoder").TokenText, "after", after)


@exact("vLLM #57941, exllamav2 #274", check=checks.positions_stay_below_the_limit)
def drafts_past_the_limit(site: Site) -> None:
    """Look-ahead rows are at positions that the model does not have."""
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
    site.monkeypatch.setattr(state, "remaining", property(lambda self: remaining(self) + (0 if asked else 9)))
