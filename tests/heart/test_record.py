"""Records and counters: what they add up to. `test_coupling` compares the records of batches with these."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pass_sampling.reference.record import Generation, Record

PROBS = st.floats(0, 1)


@st.composite
def steps(draw: Any) -> Record:
    """A record of PaSS: an exact token, drafts of which some are accepted, a final token."""
    num_draft = draw(st.integers(0, 4))
    num_accepted = draw(st.integers(0, num_draft))
    verified = draw(st.booleans())
    length = 2 + num_accepted if verified else 1
    drafts = num_draft if verified else 0

    def some(strategy: st.SearchStrategy[Any], count: int) -> tuple[Any, ...]:
        return tuple(draw(st.lists(strategy, min_size=count, max_size=count)))

    ids, final = st.integers(0, 9), "bonus" if num_accepted == num_draft else "correction"
    return Record(
        tokens=some(ids, length),
        sources=("exact", *["accepted"] * num_accepted, final)[:length],
        log_probs=some(st.floats(-30, 0), length),
        draft_tokens=some(ids, drafts),
        draft_token_probs=some(PROBS, drafts),
        target_token_probs=some(PROBS, drafts),
        accept_probs=some(PROBS, drafts),
        num_accepted=num_accepted if verified else 0,
        final_token=draw(ids) if verified else None,
        num_forward_passes=1 + verified,
        num_positions=draw(st.integers(1, 30)),
        num_draft_passes=draw(st.integers(0, 9)),
    )


@given(steps(), st.integers(0, 7))
def test_a_cut_drops_tokens_and_keeps_what_was_drafted(record: Record, count: int) -> None:
    before, cut = dict(vars(record)), record.cut(count)
    for name in ("tokens", "sources", "log_probs"):
        assert getattr(cut, name) == before[name][:count]
    for name in before.keys() - {"tokens", "sources", "log_probs", "final_token"}:
        assert getattr(cut, name) == before[name]
    assert cut.final_token == (before["final_token"] if count >= len(before["tokens"]) else None)
    assert vars(record) == before, "a record does not change"


@given(st.lists(steps(), min_size=1, max_size=5))
def test_counters_add_up_and_rates_are_their_ratios(records: list[Record]) -> None:
    tokens = tuple(token for record in records for token in record.tokens)
    result = Generation((1, 2), tokens, "length", tuple(records))
    drafted = [record for record in records if record.draft_tokens]
    assert result.sources == tuple(source for record in records for source in record.sources)
    assert result.log_probs == tuple(value for record in records for value in record.log_probs)
    assert result.num_drafts == len(drafted)
    assert result.num_draft_tokens == sum(len(record.draft_tokens) for record in drafted)
    assert result.num_accepted_tokens == sum(record.num_accepted for record in records)
    deepest = max(len(record.draft_tokens) for record in records)
    accepted = [sum(record.num_accepted > i for record in records) for i in range(deepest)]
    assert result.accepted_per_position == tuple(accepted) and sum(accepted) == result.num_accepted_tokens
    for name in ("num_forward_passes", "num_positions", "num_draft_passes"):
        assert getattr(result, name) == sum(getattr(record, name) for record in records)
    # each step yields its exact token, and each verification its accepted drafts and one token more
    num_final = sum(record.final_token is not None for record in records)
    assert len(result.tokens) == len(records) + result.num_accepted_tokens + num_final

    assert result.tokens_per_forward == len(tokens) / result.num_forward_passes
    assert result.positions_per_forward == result.num_positions / result.num_forward_passes
    if drafted:
        assert result.draft_acceptance_rate == result.num_accepted_tokens / result.num_draft_tokens
        assert result.mean_acceptance_length == 1 + result.num_accepted_tokens / result.num_drafts
    else:
        assert math.isnan(result.draft_acceptance_rate) and math.isnan(result.mean_acceptance_length)
