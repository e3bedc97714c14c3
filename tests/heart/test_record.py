"""Records and counters: what they add up to, and how a batch's tensors become one record per row."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import Port, each_port
from folders import both_packages, module

SOURCES = ("exact", "accepted", "correction", "bonus")
PROBS = st.floats(0, 1)


@st.composite
def steps(draw: Any) -> dict[str, Any]:
    """The fields of a record of PaSS: an exact token, drafts of which some are accepted, a final token."""
    num_draft = draw(st.integers(0, 4))
    num_accepted = draw(st.integers(0, num_draft))
    verified = draw(st.booleans())
    length = 2 + num_accepted if verified else 1
    ids = st.integers(0, 9)
    drafts = num_draft if verified else 0

    def some(strategy: st.SearchStrategy[Any], count: int) -> tuple[Any, ...]:
        return tuple(draw(st.lists(strategy, min_size=count, max_size=count)))

    final = "bonus" if num_accepted == num_draft else "correction"
    return {
        "tokens": some(ids, length),
        "sources": ("exact", *["accepted"] * num_accepted, final)[:length],
        "log_probs": some(st.floats(-30, 0), length),
        "draft_tokens": some(ids, drafts),
        "draft_token_probs": some(PROBS, drafts),
        "target_token_probs": some(PROBS, drafts),
        "accept_probs": some(PROBS, drafts),
        "num_accepted": num_accepted if verified else 0,
        "final_token": draw(ids) if verified else None,
        "num_forward_passes": 1 + verified,
        "num_positions": draw(st.integers(1, 30)),
        "num_draft_passes": draw(st.integers(0, 9)),
    }


generations = st.lists(steps(), min_size=1, max_size=5)


def record_of(package: str, **fields: Any) -> Any:
    return module(package, "record").Record(**fields)


def generation_of(package: str, fields: list[dict[str, Any]]) -> Any:
    records = tuple(record_of(package, **each) for each in fields)
    tokens = tuple(token for record in records for token in record.tokens)
    return module(package, "record").Generation((1, 2), tokens, "length", records)


@both_packages
@given(steps(), st.integers(0, 7))
def test_a_cut_drops_tokens_and_keeps_what_was_drafted(package: str, fields: dict[str, Any], count: int) -> None:
    record = record_of(package, **fields)
    cut = record.cut(count)
    assert (cut.tokens, cut.sources, cut.log_probs) == tuple(
        fields[name][:count] for name in ("tokens", "sources", "log_probs")
    )
    for name in fields.keys() - {"tokens", "sources", "log_probs", "final_token"}:
        assert getattr(cut, name) == fields[name]
    assert cut.final_token == (fields["final_token"] if count >= len(fields["tokens"]) else None)
    assert record == record_of(package, **fields), "a record does not change"


@both_packages
@given(generations)
def test_counters_add_up(package: str, fields: list[dict[str, Any]]) -> None:
    result = generation_of(package, fields)
    drafted = [each for each in fields if each["draft_tokens"]]
    assert len(result.log_probs) == len(result.sources) == len(result.tokens)
    assert result.num_drafts == len(drafted)
    assert result.num_draft_tokens == sum(len(each["draft_tokens"]) for each in drafted)
    assert result.num_accepted_tokens == sum(result.accepted_per_position)
    assert all(a >= b for a, b in zip(result.accepted_per_position, result.accepted_per_position[1:], strict=False))
    assert len(result.accepted_per_position) == max((len(each["draft_tokens"]) for each in fields), default=0)
    assert result.num_forward_passes == sum(each["num_forward_passes"] for each in fields)
    assert result.num_positions == sum(each["num_positions"] for each in fields)
    assert result.num_draft_passes == sum(each["num_draft_passes"] for each in fields)
    # each step yields its exact token, and each verification its accepted drafts and one token more
    assert len(result.tokens) == len(fields) + result.num_accepted_tokens + sum(
        each["final_token"] is not None for each in fields
    )


@both_packages
@given(generations)
def test_rates_are_ratios_of_counters(package: str, fields: list[dict[str, Any]]) -> None:
    result = generation_of(package, fields)
    assert result.tokens_per_forward == len(result.tokens) / result.num_forward_passes
    assert result.positions_per_forward == result.num_positions / result.num_forward_passes
    if result.num_drafts:
        assert result.draft_acceptance_rate == result.num_accepted_tokens / result.num_draft_tokens
        assert result.mean_acceptance_length == 1 + result.num_accepted_tokens / result.num_drafts
    else:
        assert math.isnan(result.draft_acceptance_rate) and math.isnan(result.mean_acceptance_length)


@both_packages
def test_counters_count(package: str) -> None:
    one = record_of(package, tokens=(5,), sources=("exact",), log_probs=(-1.0,), num_positions=3)
    two = record_of(
        package,
        tokens=(6, 7, 8),
        sources=("exact", "accepted", "correction"),
        log_probs=(-1.0, -2.0, -3.0),
        draft_tokens=(7, 9),
        num_accepted=1,
        final_token=8,
        num_forward_passes=2,
        num_positions=6,
    )
    result = module(package, "record").Generation((1, 2, 3), (5, 6, 7, 8), "eos", (one, two))
    assert (result.num_drafts, result.num_draft_tokens, result.num_accepted_tokens) == (1, 2, 1)
    assert (result.accepted_per_position, result.draft_acceptance_rate, result.mean_acceptance_length) == (
        (1, 0),
        0.5,
        2,
    )
    assert (result.num_forward_passes, result.num_positions) == (3, 9)
    assert (result.tokens_per_forward, result.positions_per_forward) == (4 / 3, 3.0)
    assert result.log_probs == (-1.0, -1.0, -2.0, -3.0)
    assert result.sources == ("exact", "exact", "accepted", "correction")


# --- A batch's record, and the record of each of its rows ---


def padded(rows: list[tuple[Any, ...]], width: int, filler: Any, kind: str) -> np.ndarray:
    return np.array([[*row, *[filler] * (width - len(row))] for row in rows], dtype=kind).reshape(len(rows), width)


def batch_record_of(port: Port, rows: list[dict[str, Any]], junk: float, choices: Any = None) -> Any:
    """Write records side by side into tensors, with junk after what each row has."""
    width, depth = max(len(row["tokens"]) for row in rows), max(len(row["draft_tokens"]) for row in rows)

    def column(name: str) -> Any:
        return port.tensor(np.array([row[name] for row in rows], dtype=np.int64))

    def block(name: str, width: int, filler: Any, kind: str) -> Any:
        return port.tensor(padded([row[name] for row in rows], width, filler, kind))

    sources = [tuple(SOURCES.index(source) for source in row["sources"]) for row in rows]
    final = np.array([-1 if row["final_token"] is None else row["final_token"] for row in rows])
    return port.module("batch_record").BatchRecord(
        tokens=block("tokens", width, 99, "int64"),
        sources=port.tensor(padded(sources, width, 0, "int64")),
        log_probs=block("log_probs", width, junk, "float64"),
        count=port.tensor(np.array([len(row["tokens"]) for row in rows])),
        draft_tokens=block("draft_tokens", depth, 99, "int64"),
        draft_token_probs=block("draft_token_probs", depth, junk, "float64"),
        target_token_probs=block("target_token_probs", depth, junk, "float64"),
        accept_probs=block("accept_probs", depth, junk, "float64"),
        num_draft=port.tensor(np.array([len(row["draft_tokens"]) for row in rows])),
        num_accepted=column("num_accepted"),
        final_token=port.tensor(final),
        num_forward_passes=column("num_forward_passes"),
        num_positions=column("num_positions"),
        num_draft_passes=column("num_draft_passes"),
        choices=choices,
    )


@each_port
@given(st.lists(steps(), min_size=1, max_size=5), st.sampled_from([math.nan, math.inf, 0.5]))
def test_every_row_reads_its_own_record(port: Port, rows: list[dict[str, Any]], junk: float) -> None:
    assert batch_record_of(port, rows, junk).rows() == [record_of("gpu", **row) for row in rows]


@each_port
def test_every_row_reads_the_choices_that_it_made(port: Port) -> None:
    fields = {"tokens": (1,), "sources": ("exact",), "log_probs": (-1.0,), "draft_tokens": ()}
    fields |= {"draft_token_probs": (), "target_token_probs": (), "accept_probs": (), "num_accepted": 0}
    fields |= {"final_token": None, "num_forward_passes": 1, "num_positions": 1, "num_draft_passes": 0}
    edges = np.array([list(accumulate(row)) for row in [[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]])
    choice = port.module("batch_record").Choices
    choices = (
        choice(0, port.tensor(edges), port.tensor(np.array([0, 1, 0])), port.tensor(np.array([True, True, False]))),
        choice(
            3, port.tensor(edges[::-1]), port.tensor(np.array([1, 0, 1])), port.tensor(np.array([False, True, True]))
        ),
    )
    records = batch_record_of(port, [fields] * 3, 0.0, choices).rows()
    read = [[(each.column, each.edges.tolist(), each.outcome) for each in record.choices] for record in records]
    first, second, third = (row.tolist() for row in edges)
    assert read == [[(0, first, 0)], [(0, second, 1), (3, second, 0)], [(3, first, 1)]]
    assert third == [1.0, 1.0]
    assert all(isinstance(each.edges, np.ndarray) for record in records for each in record.choices)


@pytest.mark.torch
def test_the_sources_are_numbered_as_the_records_name_them() -> None:
    numbered = module("gpu", "batch_record")
    assert numbered.SOURCES == SOURCES
    assert [numbered.EXACT, numbered.ACCEPTED, numbered.CORRECTION, numbered.BONUS] == [0, 1, 2, 3]
