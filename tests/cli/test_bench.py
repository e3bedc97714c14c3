"""A comparison of methods: who writes when, what is counted, what is expected, and that the peers do the same task."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import pass_sampling.gpu as port
from folders import tiny_config, write_checkpoint
from models import lookahead, table, transformer
from pass_sampling.gpu.bench.expectation import expected_tokens
from pass_sampling.gpu.bench.prompts import Question, read_prompts
from pass_sampling.gpu.bench.report import row_of
from pass_sampling.gpu.bench.runs import Entry, Run, load_peer, peer_writer, repeated_ngrams, run_all
from pass_sampling.gpu.drafters import PromptLookup
from pass_sampling.gpu.methods import PaSSOneCall
from pass_sampling.gpu.methods.pass_one_call import OneCall
from pass_sampling.reference.exactness.enumeration import every_outcome

RULES = ("token", "block", "match")


def test_an_ngram_is_repeated_if_it_stood_in_the_text_before():
    assert repeated_ngrams(range(100)) == 0
    assert repeated_ngrams([7] * 8) == 0  # the only one
    assert repeated_ngrams([7] * 12) == 4 / 5
    assert repeated_ngrams([*range(10), *range(10)]) == 3 / 13  # 0-7, 1-8, 2-9 come back, and none across the seam
    assert repeated_ngrams([1, 2, 1, 2, 1], size=2) == 2 / 4
    assert repeated_ngrams([7] * 7) == repeated_ngrams([]) == 0  # too short to have one


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


def test_a_text_of_another_length_is_a_bug_and_no_repeat_is_refused():
    with pytest.raises(RuntimeError, match="b wrote 3 tokens, expected 4"):
        run_all([fake("autoregressive", []), fake("b", [], length=3)], [[1]], 4, 1)
    with pytest.raises(ValueError, match="repeats: found 0"):
        run_all([fake("autoregressive", [])], [[1]], 4, 0)


def test_a_speed_is_the_median_of_paired_ratios_and_looping_texts_do_not_count():
    fresh, loop = tuple(range(20)), (3,) * 20
    base = Run(fresh, 20, 30)
    runs = {
        "autoregressive": [[replace(base, seconds=s), replace(base, seconds=s)] for s in (1.0, 2.0, 4.0)],
        "other": [[Run(fresh, 10, 40, 3, 8, (6, 4), s), Run(loop, 5, 30, 1, 4, (4, 4, 4), s)] for s in (1.0, 1.0, 1.0)],
    }
    first, second = (row_of(each, runs["autoregressive"]) for each in runs.values())
    assert first["ratio_to_plain"] == 1.0 and first["ratio_spread"] == [1.0, 1.0]
    assert (first["num_drafts"], first["accepted_per_position"]) == (None, None)
    assert first["tokens_per_second"] == 10 and first["spread"] == [5.0, 20.0]
    assert second["ratio_to_plain"] == 2.0 and second["ratio_spread"] == [1.0, 4.0]
    assert second["ratio_of_counting_texts"] == 2.0 and first["ratio_of_counting_texts"] == 1.0
    assert second["tokens_per_second"] == 20.0 and second["milliseconds_per_pass"] == 2000 / 15
    assert (second["texts"], second["texts_that_count"]) == (6, 3)
    assert (second["tokens"], second["num_forward_passes"], second["num_draft_passes"]) == (60, 30, 9)
    assert second["tokens_per_forward"] == 2.0 and second["positions_per_forward"] == 4.0
    assert (second["num_drafts"], second["accepted_per_position"]) == (24, [18, 12])
    assert second["repeated_8grams"] == statistics.fmean([0, 12 / 13] * 3)


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


BAD_PROMPTS = {
    "\n \n": "holds no prompt",
    "def main():": "line 1 of",
    '{"prompt": "a"}\n{"prompt": "b"': "line 2 of",
    '{"prompt": "a"}\n{"text": "b"}': "line 2 of",
    '{"prompt": ""}': "has no `prompt` or `turns`",
    "[" * 100_000: "expected a JSON object",
}


@pytest.mark.parametrize(("content", "said"), BAD_PROMPTS.items(), ids=range(len(BAD_PROMPTS)))
def test_a_bad_file_of_prompts_is_refused(content, said, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^--prompts: .*, expected") as error:
        read_prompts(path)
    assert said in str(error.value)
