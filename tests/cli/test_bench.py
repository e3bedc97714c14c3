"""A comparison of methods: who writes when, what is counted, what is expected, and that the peers do the same task."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pass_sampling.gpu as port
from folders import tiny_config, write_checkpoint, write_json
from models import lookahead, table, transformer
from pass_sampling.gpu.bench.expectation import Expectation, expected_tokens, expected_tokens_per_forward, steps_after
from pass_sampling.gpu.bench.figures import Run, by_category, repeated_ngrams, rows_of
from pass_sampling.gpu.bench.prompts import Question, pieces, prefixes_of, read_library, read_prompts
from pass_sampling.gpu.bench.roofline import SHAPES
from pass_sampling.gpu.bench.runs import Entry, load_peer, method_writer, peer_writer, run_all
from pass_sampling.gpu.drafters import PromptLookup
from pass_sampling.gpu.methods import PaSSOneCall
from pass_sampling.gpu.methods.pass_one_call import OneCall
from pass_sampling.gpu.model.memory import memory_of
from pass_sampling.reference.exactness.enumeration import every_outcome

PROMPT = (1, 0)
RULES = ("token", "block", "match")


# --- Text that goes round in circles ---


def test_an_ngram_is_repeated_if_it_stood_in_the_text_before():
    assert repeated_ngrams(range(100)) == 0
    assert repeated_ngrams([7] * 8) == 0  # the only one
    assert repeated_ngrams([7] * 12) == 4 / 5
    assert repeated_ngrams([*range(10), *range(10)]) == 3 / 13  # 0-7, 1-8, 2-9 come back, and none across the seam
    assert repeated_ngrams([1, 2, 1, 2, 1], size=2) == 2 / 4
    assert repeated_ngrams([7] * 7) == repeated_ngrams([]) == 0  # too short to have one


def test_a_text_counts_up_to_a_fifth_of_repeated_8grams():
    fifth = [*range(8), *range(8)]  # 9 8-grams, 1 of them again
    assert Run(tuple(fifth), 1, 1).counts and repeated_ngrams(fifth) < 0.2
    assert not Run((*range(10), *range(10)), 1, 1).counts  # 3 of 13


# --- Who writes when ---


def fake(name: str, calls: list[tuple[str, int, int]], length: int | None = None) -> Entry:
    def write(prompt: Sequence[int], max_new_tokens: int, seed: int, request: int) -> Run:
        calls.append((name, prompt[0], request))
        return Run(tuple(range(max_new_tokens if length is None else length)), 2, 5)

    return Entry(name, write)


def test_all_take_turns_at_each_prompt_and_none_always_begins():
    calls: list[tuple[str, int, int]] = []
    names, prompts, repeats = ["autoregressive", "b", "c"], [[10], [20], [30]], 6
    runs = run_all([fake(name, calls) for name in names], prompts, 4, repeats)
    turns = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert len(turns) == 1 + repeats * len(prompts)
    for turn in turns:
        assert sorted(name for name, _, _ in turn) == names
        assert len({(prompt, request) for _, prompt, request in turn}) == 1  # the same task
    assert len({turn[0][2] for turn in turns}) == len(turns)  # uniforms of its own each time
    for prompt in (10, 20, 30):
        first = Counter(turn[0][0] for turn in turns[1:] if turn[0][1] == prompt)
        assert first == dict.fromkeys(names, repeats / len(names))
    assert {name: [len(repeat) for repeat in written] for name, written in runs.items()} == dict.fromkeys(
        names, [3] * 6
    )


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.2, 1.0, 20.0])
def test_a_budget_is_kept_by_fewer_prompts_then_shorter_texts(monkeypatch, seconds):
    """A token takes `seconds`, and a text that is begun is finished."""
    now, calls, names, prompts = [0.0], [], ("autoregressive", "b"), [[1], [2], [3], [4]]
    monkeypatch.setattr("pass_sampling.gpu.bench.figures.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(name: str) -> Entry:
        def write(prompt: Sequence[int], max_new_tokens: int, seed: int, request: int) -> Run:
            now[0] += seconds * max_new_tokens
            return fake(name, calls).write(prompt, max_new_tokens, seed, request)

        return Entry(name, write)

    runs = run_all([slow(name) for name in names], prompts, 64, 3, budget=100.0)
    found = {(len(written), len(written[0]), len(written[0][0].tokens)) for written in runs.values()}
    expected = {0.01: (3, 4, 64), 0.05: (3, 4, 64), 0.2: (3, 1, 64), 1.0: (3, 1, 11), 20.0: (3, 1, 8)}
    assert found == {expected[seconds]}
    assert all(len({len(repeat) for repeat in written}) == 1 for written in runs.values())
    assert seconds == 20.0 or now[0] <= 100.0
    assert [prompt for _, prompt, _ in calls[:4]] == [1] * 4  # the first prompt warms up, twice


def test_what_was_written_so_far_is_told_after_every_text_and_stays_paired_when_it_is_stopped():
    told: list[tuple[int, int, list[int]]] = []
    found: list[Any] = []

    def report(done: int, total: int, runs: Any) -> None:
        found[:] = [runs]
        told.append((done, total, [len(repeat) for repeat in runs["b"]]))
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([fake(name, []) for name in ("autoregressive", "b")], [[1], [2]], 4, 5, report=report)
    assert told[:5] == [(number, 22, []) for number in range(1, 6)]
    assert told[-1] == (13, 22, [1] * 5) and set(found[0]) == {"autoregressive", "b"}
    assert len({tuple(map(len, written)) for written in found[0].values()}) == 1


def test_a_text_of_another_length_is_a_bug_and_no_repeat_is_refused():
    with pytest.raises(RuntimeError, match="b wrote 3 tokens, expected 4"):
        run_all([fake("autoregressive", []), fake("b", [], length=3)], [[1]], 4, 1)
    with pytest.raises(ValueError, match="repeats: found 0"):
        run_all([fake("autoregressive", [])], [[1]], 4, 0)


# --- What is counted ---


def test_a_speed_is_the_median_of_paired_ratios_and_looping_texts_do_not_count():
    fresh, loop = tuple(range(20)), (3,) * 20
    base = Run(fresh, 20, 30)
    runs = {
        "autoregressive": [[replace(base, seconds=s), replace(base, seconds=s)] for s in (1.0, 2.0, 4.0)],
        "other": [[Run(fresh, 10, 40, 3, 8, (6, 4), s), Run(loop, 5, 30, 1, 4, (4, 4, 4), s)] for s in (1.0, 1.0, 1.0)],
    }
    first, second = rows_of({"autoregressive": {}, "other": {"num_draft": 2}}, runs, {"other": Expectation(1.5, 0.1)})
    assert first["ratio_to_plain"] == 1.0 and first["ratio_spread"] == [1.0, 1.0]
    assert (first["num_drafts"], first["accepted_per_position"], first["expected_tokens_per_forward"]) == (None,) * 3
    assert first["tokens_per_second"] == 10 and first["spread"] == [5.0, 20.0]
    assert second["ratio_to_plain"] == 2.0 and second["ratio_spread"] == [1.0, 4.0]
    assert second["ratio_of_counting_texts"] == 2.0 and first["ratio_of_counting_texts"] == 1.0
    assert second["tokens_per_second"] == 20.0 and second["milliseconds_per_pass"] == 2000 / 15
    assert (second["texts"], second["texts_that_count"]) == (6, 3)
    assert (second["tokens"], second["num_forward_passes"], second["num_draft_passes"]) == (60, 30, 9)
    assert second["tokens_per_forward"] == 2.0 and second["positions_per_forward"] == 4.0
    assert (second["num_drafts"], second["accepted_per_position"]) == (24, [18, 12])
    assert second["repeated_8grams"] == statistics.fmean([0, 12 / 13] * 3)
    assert (second["expected_tokens_per_forward"], second["expected_standard_error"]) == (1.5, 0.1)


def test_looping_texts_do_not_make_a_method_look_fast():
    plain = [Run(tuple(range(20)), 20, 30, seconds=seconds) for seconds in (1.0, 3.0)]
    fast_where_it_loops = [Run(tuple(range(20)), 18, 40, seconds=2.0), Run((3,) * 20, 5, 30, seconds=0.5)]
    rows = rows_of({"autoregressive": {}, "other": {}}, {"autoregressive": [plain], "other": [fast_where_it_loops]}, {})
    assert rows[1]["ratio_to_plain"] == 4 / 2.5 and rows[1]["ratio_of_counting_texts"] == 1 / 2

    runs = {"autoregressive": [[Run((3,) * 20, 20, 30, seconds=1.0)]]}  # and where none counts, there is no figure
    (row,) = rows_of({"autoregressive": {}}, runs, {})
    assert row["tokens_per_forward"] is row["positions_per_forward"] is row["ratio_of_counting_texts"] is None
    assert row["tokens"] == row["texts_that_count"] == 0 and row["tokens_per_second"] == 20


def test_the_passes_of_a_method_are_those_of_its_records():
    model = transformer(port, 3)
    drafter = port.ModelDrafter(transformer(port, 50, num_hidden_layers=1))
    for method in (
        port.Autoregressive(model),
        port.PaSS(model, lookahead(port, model)),
        port.SpeculativeSampling(model, drafter, num_draft=2),
    ):
        run = method_writer(method)(PROMPT, 12, 0, 3)
        result = port.generate(method, PROMPT, 12, eos_token_ids=(), seed=0, request=3)
        assert run.tokens == result.tokens and len(run.tokens) == 12
        assert run.num_forward_passes == result.num_forward_passes and run.num_drafts == result.num_drafts
        assert (run.num_draft_passes > 0) == isinstance(method, port.SpeculativeSampling)
    assert method_writer(port.Autoregressive(model))(PROMPT, 12, 0, 0).num_positions == len(PROMPT) + 11


# --- What is expected ---


def methods(model: Any, rule: str) -> list[Any]:
    settings = port.SamplingConfig(temperature=1.3)
    draft = port.SamplingConfig(temperature=0.6)
    drafter = table(port, num_lookahead=0, seed=50)
    if not isinstance(model, port.TableModel):
        drafter = transformer(port, 50, num_hidden_layers=1)
    return [
        port.PaSS(model, lookahead(port, model), settings, draft, rule),
        port.SpeculativeSampling(model, port.ModelDrafter(drafter), settings, draft, rule, num_draft=3),
        port.SpeculativeSampling(model, PromptLookup(model.vocab_size), settings, None, rule, num_draft=3),
        PaSSOneCall(model, lookahead(port, model), settings, draft, rule),
    ]


def outcomes(method: Any, prompt: Sequence[int]) -> list[tuple[Any, float, Any]]:
    """Every record of the first step that drafts, its probability, and what had been drawn when it verified."""
    found = [(method.start(prompt, port.Ending(2 * method.num_uniforms + 1)), None, 1.0)]
    for _ in range(1 + isinstance(method, OneCall)):
        found = list(every_outcome(method, [(state, weight) for state, _, weight in found], 256, False))
    return [
        (record, weight, state.new_tokens[: -len(record.tokens) or None] + record.draft_tokens)
        for state, record, weight in found
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [table, transformer], ids=["table", "transformer"])
def test_the_expectation_over_acceptances_has_the_exact_mean_and_does_not_depend_on_them(make, rule):
    """Sums of a few thousand products of numbers up to 4, each wrong by a few times 2^-53: within 1e-12."""
    for method in methods(make(port, seed=3), rule):
        found = outcomes(method, (1, 0, 2, 1, 0))
        assert abs(sum(weight for _, weight, _ in found) - 1.0) < 1e-12
        exact = sum(weight * len(record.tokens) for record, weight, _ in found)
        assert exact > 1.2
        assert abs(sum(weight * expected_tokens(record, rule) for record, weight, _ in found) - exact) < 1e-12
        by_drafts: dict[Any, set[float]] = {}
        for record, _, drawn in found:
            key = (record.tokens[: record.sources.count("exact")], drawn)
            by_drafts.setdefault(key, set()).add(round(expected_tokens(record, rule), 9))
        assert all(len(values) == 1 for values in by_drafts.values())


def test_plain_decoding_yields_exactly_one_token_per_pass():
    model = transformer(port, 3)
    found = expected_tokens_per_forward(port.Autoregressive(model), [PROMPT, (2, 1, 1, 0)], 3)
    assert (found.tokens_per_forward, found.standard_error) == (1.0, 0.0)


@pytest.mark.parametrize("rule", RULES)
def test_the_expectation_agrees_with_enumeration(rule):
    """Of n independent numbers in [1, 2 + K] the mean is off by (1 + K) sqrt(ln(2 / d) / (2 n)) with chance d at most.

    Hoeffding 1963, Theorem 2; d = 1e-9 for each of 12 comparisons, at a fixed seed.
    """
    uniform_streams = 400
    for method in methods(transformer(port, 3), rule):
        exact = sum(weight * len(record.tokens) for record, weight, _ in outcomes(method, PROMPT))
        passes = 2 if isinstance(method, port.PaSS) else 1
        found = expected_tokens_per_forward(method, [PROMPT], uniform_streams)
        drafts = method.named_uniforms["draft"]
        assert found.standard_error is None  # of a single place
        assert abs(found.tokens_per_forward * passes - exact) < (1 + drafts) * math.sqrt(
            math.log(2e9) / (2 * uniform_streams)
        )


def trees(model: Any, rule: str) -> list[Any]:
    settings, draft = port.SamplingConfig(temperature=1.3), port.SamplingConfig(temperature=0.6, top_k=2)
    drafter, shape = port.ModelDrafter(table(port, num_lookahead=0, seed=50)), (2, (1, 0))
    return [
        port.SpeculativeTree(model, drafter, settings, draft, rule, num_candidates=shape),
        port.PaSSOneCallTree(model, lookahead(port, model), settings, draft, rule, num_candidates=shape),
    ]


@pytest.mark.parametrize("rule", ["without-replacement", "with-replacement", "k-seq", "match"])
def test_the_expectation_of_a_tree_is_exact_given_its_drafts(rule):
    """Among all outcomes of a step those with the same drafts yield as many tokens on average as is expected."""
    for method in trees(table(port, seed=12, spread=1.0), rule):
        by_drafts: dict[Any, list[tuple[float, int]]] = {}
        for record, weight, drawn in outcomes(method, PROMPT):
            key = drawn, record.draft_parents
            by_drafts.setdefault(key, []).append((weight, len(record.tokens)))
        seen = set()
        for request, record in enumerate(steps_after(method, [PROMPT], 40)):
            before = port.generate(method, PROMPT, 1, (), request=request).tokens if isinstance(method, OneCall) else ()
            some = by_drafts[before + record.draft_tokens, record.draft_parents]
            exact = sum(weight * count for weight, count in some) / sum(weight for weight, _ in some)
            assert expected_tokens(record, rule) == pytest.approx(exact, abs=1e-12)
            seen.add(round(exact, 9))
        assert len(seen) > 1


def test_the_standard_error_is_that_of_a_ratio_of_means_over_places():
    method = port.PaSS(model := transformer(port, 3), lookahead(port, model))
    places = [(1, 0), (2, 1, 1), (0, 0, 2, 1), (2,)]
    found = expected_tokens_per_forward(method, places, 5, seed=4)
    each = []
    for number in range(len(places)):
        padded = [places[number]] * (number + 1)  # the uniform streams that this place had
        many = [expected_tokens_per_forward(method, padded[:k], 5, seed=4) for k in (number, number + 1) if k]
        totals = [many[-1].tokens_per_forward * (number + 1), many[0].tokens_per_forward * number if number else 0.0]
        each.append(totals[0] - totals[1])
    assert abs(found.tokens_per_forward - statistics.fmean(each)) < 1e-12
    assert abs(found.standard_error - statistics.stdev(each) / math.sqrt(len(each))) < 1e-12


def test_an_expectation_needs_a_place_and_a_stream():
    method = port.Autoregressive(transformer(port, 3))
    for places, uniform_streams in (([], 1), ([PROMPT], 0)):
        with pytest.raises(ValueError, match="prefixes: found"):
            expected_tokens_per_forward(method, places, uniform_streams)


# --- The peers ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model every token of which ends a text, with suggestions on sampling, and a smaller one."""
    root = tmp_path_factory.mktemp("peers")
    ends = {"eos_token_id": list(range(23))}
    suggested = ends | {"do_sample": True, "temperature": 3.0, "repetition_penalty": 5.0, "max_new_tokens": 2}
    write_checkpoint(root / "model", seed=3, generation_config=suggested, **ends)
    write_checkpoint(root / "small", tiny_config(num_hidden_layers=1), seed=3, generation_config=suggested, **ends)
    return root


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-9}])
def test_the_peers_write_what_plain_decoding_writes_where_the_distribution_leaves_no_choice(folders, settings):
    """Float32, whose rounding moves logits by about 1e-6, while the likeliest two differ by more in this text."""
    sampling = port.SamplingConfig(**settings)
    model = port.load_model(folders / "model", "float32")
    expected = port.generate(port.Autoregressive(model, sampling), [5, 6, 7, 5, 6], 24, eos_token_ids=()).tokens
    target, small = (load_peer(folders / name, model.dtype, model.device) for name in ("model", "small"))
    before = torch.random.get_rng_state()
    for assistant, num_draft in ((None, 0), (None, 3), (small, 3)):
        run = peer_writer(target, sampling, assistant, num_draft)([5, 6, 7, 5, 6], 24, 0, 1)
        assert run.tokens == expected
        assert run.num_drafts is None and run.accepted_per_position == ()
        if num_draft == 0:
            assert (run.num_forward_passes, run.num_positions) == (24, 5 + 23)
        else:
            assert run.num_forward_passes <= 24 <= run.num_positions
        assert (run.num_draft_passes > 0) == (assistant is not None)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_peer_writes_the_same_for_the_same_request_and_something_else_for_another(folders):
    write = peer_writer(load_peer(folders / "model", torch.float32, torch.device("cpu")), port.SamplingConfig())
    assert write([5], 6, 1, 2).tokens == write([5], 6, 1, 2).tokens
    assert len({write([5], 6, seed, request).tokens for seed in (0, 1) for request in range(3)}) > 3


def test_a_folder_that_transformers_does_not_read_is_one_sentence(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "unheard-of"})
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="holds nothing for transformers"):
        load_peer(tmp_path, torch.float32, torch.device("cpu"))


# --- Prompts and places ---


def test_pieces_begin_with_a_line_and_come_from_everywhere():
    texts = ["".join(f"{name} {number}\n" for number in range(2000)) for name in "abc"]
    found = pieces(texts, 12, 8)
    assert Counter(piece[0] for piece in found) == {"a": 4, "b": 4, "c": 4}
    starts = sorted(int(piece.split()[1]) for piece in found)
    assert starts[0] == 0 and starts[-1] > 1500 and max(b - a for a, b in itertools.pairwise(starts)) < 600
    assert all(len(piece) == 12 * 8 for piece in found)
    assert [piece[0] for piece in pieces(texts, 2, 8)] == ["a", "b"]
    assert pieces(["short"], 2, 8) == ["short", "short"]


def test_prefixes_reach_from_the_middle_of_each_prompt_to_its_end():
    found = prefixes_of([list(range(8)), [7]], 8)
    assert found == [list(range(5)), list(range(6)), list(range(7)), list(range(8)), [7]]
    assert prefixes_of([[1, 2], [3, 4, 5]], 1) == [[1, 2], [3, 4, 5]]


def test_the_library_is_read_as_far_as_it_is_there():
    found = read_library(["bisect.py", "no such file.py", "asyncio/__init__.py"])
    assert list(found) == ["bisect.py", "asyncio/__init__.py"]
    assert "def bisect_right" in found["bisect.py"]


def test_prompts_are_json_lines(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a\xe2\x80\xa8b", "more": 1}\r\n\n' + json.dumps({"prompt": "é"}).encode()
    )
    assert read_prompts(path) == [Question(("a\u2028b",)), Question(("é",))]


def test_questions_of_spec_bench_are_read_as_they_are(tmp_path):
    lines = [{"question_id": 1, "category": "qa", "turns": ["a"]}, {"category": "coding", "turns": ["b", "c"]}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_prompts(tmp_path / "q.jsonl") == [Question(("a",), "qa"), Question(("b", "c"), "multi-turn")]


def test_figures_by_category_are_those_of_its_prompts():
    """Of two prompts and three repeats; a text that ends early counts by its tokens."""
    runs = {
        "autoregressive": [[Run((1, 2), 2, 3, seconds=2.0), Run((1,), 1, 2, seconds=1.0)]] * 3,
        "other": [[Run((1, 2), 1, 3, seconds=s), Run((1, 2, 3, 4), 2, 2, seconds=1.0)] for s in (0.5, 1.0, 4.0)],
    }
    found = by_category(runs, ["qa", "rag"])
    assert list(found) == ["qa", "rag", "overall"]
    assert found["qa"]["other"] == {"ratio_to_plain": 2.0, "tokens_per_forward": 2.0}
    assert found["rag"]["other"] == {"ratio_to_plain": 4.0, "tokens_per_forward": 2.0}
    assert found["overall"]["other"]["ratio_to_plain"] == 6 / 2.0


BAD_PROMPTS = {
    "\n \n": "holds no prompt",
    "def main():": "line 1 of",
    '{"prompt": "a"}\n{"prompt": "b"': "line 2 of",
    '{"prompt": "a"}\n{"text": "b"}': "line 2 of",
    '["a"]': "has no prompt",
    '{"prompt": ""}': "has no prompt",
    '{"prompt": 7}': "has no prompt",
    "[" * 100_000: "is no JSON",
}


@pytest.mark.parametrize(("content", "said"), BAD_PROMPTS.items(), ids=range(len(BAD_PROMPTS)))
def test_a_bad_file_of_prompts_is_refused(content, said, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^--prompts: .*, expected") as error:
        read_prompts(path)
    assert said in str(error.value)


# --- The shapes of `bench --shape` ---


@pytest.mark.parametrize("shape", ["1b", "7b"])
def test_the_shapes_are_those_of_known_models(shape):
    """In bfloat16: 1.24 and 6.74 billion parameters."""
    needed = memory_of(SHAPES[shape], torch.bfloat16, 1024, 512)
    assert needed.weights / 2e9 == pytest.approx({"1b": 1.236, "7b": 6.738}[shape], abs=0.001)
    assert needed.cache == {"1b": 2 * 16 * 8 * 64 * 1024 * 2, "7b": 2 * 32 * 32 * 128 * 1024 * 2}[shape]
