"""PaSS in transformers' `generate`: the text is the one that `generate` writes, with its processors and criteria."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, TextStreamer, set_seed

from hf_models import ARCHITECTURES, NO_MASKS, VOCAB, padded, prompts, shared, tiny
from pass_sampling.gpu import (
    Ending,
    FusedPaSS,
    LookAhead,
    PaSS,
    SamplingConfig,
    TransformersModel,
    generate_with_pass,
    pass_generate,
    untrained_lookahead,
)
from pass_sampling.gpu.hf.generate import PassOutput
from tokenizer_kinds import tokenizer_of

FUSED = pytest.mark.parametrize("fused", [False, True], ids=["two-calls", "one-call"])
PROCESSED = {
    "plain": {},
    "eos": {"eos_token_id": [5, 7, 9]},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "min": {"min_new_tokens": 10, "eos_token_id": [5, 7, 9, 12]},
    "forced": {"forced_eos_token_id": 4},
    "bans": {"bad_words_ids": [[7], [8, 9]], "suppress_tokens": [11]},
    "returns": {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
}


def vectors(model: Any, num_lookahead: int = 3) -> LookAhead:
    return untrained_lookahead(model, num_lookahead)


def greedy(model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
    return model.generate(**inputs, **{"max_new_tokens": 26, "do_sample": False} | settings)


def with_pass(model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
    given = {"custom_generate": pass_generate, "lookahead": vectors(model)}
    return greedy(model, inputs, **given | settings)


@FUSED
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_text_is_that_of_generate(kind: str, fused: bool) -> None:
    model, inputs = shared(kind), {"input_ids": prompts(1)}
    if fused and kind in NO_MASKS:
        with pytest.raises(ValueError, match=r"positions that can be told|layers of the kinds"):
            with_pass(model, inputs, fused=True)
        return
    found = with_pass(model, inputs, fused=fused, return_dict_in_generate=True)
    assert torch.equal(found.sequences, greedy(model, inputs))
    assert found.generations[0].num_draft_tokens > 5


def test_drafts_are_accepted_in_these_tests() -> None:
    rates = []
    for kind in ("llama", "mistral", "gemma2", "gpt2", "phi3", "granite"):
        found = with_pass(shared(kind), {"input_ids": prompts(1)}, return_dict_in_generate=True)
        rates.append(found.generations[0].num_accepted_tokens)
    assert sum(rate > 0 for rate in rates) >= 3


@FUSED
@pytest.mark.parametrize("settings", PROCESSED.values(), ids=PROCESSED)
@pytest.mark.parametrize("kind", ["mistral", "gpt2"])
def test_processors_and_ends_are_those_of_generate_in_padded_batches(kind: str, settings: Any, fused: bool) -> None:
    model, settings = shared(kind), {"max_new_tokens": 16, **settings}
    expected = greedy(model, padded(3), **settings)
    assert torch.equal(with_pass(model, padded(3), fused=fused, **settings), expected)


class Stops(StoppingCriteria):
    """End after a token of some residue, once there are enough of them; it knows rows by their place."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **named: Any) -> torch.Tensor:
        place = torch.arange(len(input_ids))
        return ((input_ids % 5 == 1).sum(dim=1) > 3 + place) & (input_ids[:, -1] % 5 == 1)


class Pushes(LogitsProcessor):
    """Make tokens likelier by how far the text has come and by the row's place: wrong on every other prefix."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = torch.arange(len(input_ids))
        favoured = (input_ids[:, -1] * 3 + input_ids.shape[1] + place) % VOCAB
        return scores + 4.0 * torch.nn.functional.one_hot(favoured, VOCAB)


@FUSED
def test_criteria_and_processors_of_the_user_see_every_prefix(fused: bool) -> None:
    model, hooks = shared("llama"), {"stopping_criteria": [Stops()], "logits_processor": [Pushes()]}
    expected = greedy(model, padded(3), **hooks)
    found = with_pass(model, padded(3), fused=fused, return_dict_in_generate=True, **hooks)
    lengths = [len(text.tokens) for text in found.generations]
    assert len(set(lengths)) > 1 and min(lengths) < 26
    for row, text in enumerate(found.generations):
        assert expected[row, 5 : 5 + len(text.tokens)].tolist() == list(text.tokens)
        assert text.end == ("length" if len(text.tokens) == 26 else "criterion")


@FUSED
def test_a_text_never_overshoots_its_length(fused: bool) -> None:
    model = shared("qwen2")
    for length in range(1, 9):
        expected = greedy(model, padded(2), max_new_tokens=length)
        assert torch.equal(with_pass(model, padded(2), max_new_tokens=length, fused=fused), expected)


@FUSED
@pytest.mark.parametrize("kind", ["gpt2", "opt"])  # beyond it there is no position
def test_the_whole_context_can_be_filled(kind: str, fused: bool) -> None:
    model, inputs = shared(kind), padded(2, 45)
    expected = greedy(model, inputs, max_new_tokens=19)
    assert torch.equal(with_pass(model, inputs, max_new_tokens=19, fused=fused), expected)


@FUSED
def test_the_seed_decides_what_is_drawn(fused: bool) -> None:
    model, drawn = shared("llama"), []
    for seed in (3, 3, 4):
        set_seed(seed)
        drawn.append(with_pass(model, padded(2), do_sample=True, top_k=0, fused=fused).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@FUSED
def test_what_is_drawn_is_what_a_step_draws_from_pytorchs_uniforms(fused: bool) -> None:
    model = shared("llama")
    set_seed(3)
    found = with_pass(model, {"input_ids": prompts(1)}, do_sample=True, top_k=5, temperature=0.7, fused=fused)
    set_seed(3)
    method = (FusedPaSS if fused else PaSS)(
        TransformersModel(model), vectors(model), SamplingConfig(temperature=0.7, top_k=5)
    )
    state = method.start(prompts(1)[0].tolist(), Ending(26))
    while not bool(state.ended):
        state, _ = method.step(state, torch.rand(1, method.num_uniforms, dtype=torch.float64))
    assert found[0, 5:].tolist() == list(state.new_tokens)


def test_greedy_decoding_leaves_the_generator_alone() -> None:
    set_seed(5)
    before = torch.get_rng_state()
    with_pass(shared("llama"), {"input_ids": prompts(1)})
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_with_one_token_left_is_greedy() -> None:
    model, inputs = shared("gpt2"), {"input_ids": prompts(1)}
    assert torch.equal(with_pass(model, inputs, do_sample=True, top_k=1), greedy(model, inputs))


def test_the_dictionary_is_transformers_own_with_a_record_beside() -> None:
    model = shared("gemma2")
    found = with_pass(model, {"input_ids": prompts(1)}, return_dict_in_generate=True)
    expected = greedy(model, {"input_ids": prompts(1)}, return_dict_in_generate=True)
    assert isinstance(found, type(expected)) and isinstance(found, PassOutput)
    assert found.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length() == 30
    assert found.generations[0].tokens == tuple(found.sequences[0, 5:].tolist())
    assert with_pass(model, padded(2), return_dict_in_generate=True).past_key_values is None


@FUSED
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_a_text_goes_on_from_the_cache_of_the_one_before(kind: str, fused: bool) -> None:
    model = shared(kind)
    first = with_pass(model, {"input_ids": prompts(1)}, max_new_tokens=10, fused=fused, return_dict_in_generate=True)
    tokens = torch.cat([first.sequences, prompts(1, 4, seed=1)], dim=1)
    more = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    expected = greedy(model, more, max_new_tokens=10)
    assert torch.equal(
        with_pass(model, more, max_new_tokens=10, past_key_values=first.past_key_values, fused=fused), expected
    )
    # and `generate` goes on from it as well
    again = with_pass(model, {"input_ids": prompts(1)}, max_new_tokens=10, fused=fused, return_dict_in_generate=True)
    assert torch.equal(greedy(model, more, max_new_tokens=10, past_key_values=again.past_key_values), expected)


def test_a_bfloat16_model_writes_what_its_own_passes_say() -> None:
    model = tiny("llama", torch.bfloat16)
    found = with_pass(model, {"input_ids": prompts(1)}, return_dict_in_generate=True)
    assert found.sequences.shape == (1, 31) and found.generations[0].num_draft_tokens > 5


def test_the_lines_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "huggingface.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    exec(program, {})
    assert capsys.readouterr().out.startswith("def find(self, name):")
    assert f"for {len(ARCHITECTURES)} architectures" in page


# --- Streamers and stop strings ---


class Letters:
    """A tokenizer of one letter per token."""

    def decode(self, tokens: Any, **named: Any) -> str:
        return "".join(chr(97 + int(token) % 26) + str(int(token) // 26) for token in torch.as_tensor(tokens).flatten())

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def test_a_streamer_gets_the_prompt_and_then_every_token(capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs = shared("llama"), {"input_ids": prompts(1)}
    expected = greedy(model, inputs)
    for skip in (False, True):
        generate_with_pass(
            model,
            **inputs,
            lookahead=vectors(model),
            streamer=TextStreamer(Letters(), skip_prompt=skip),  # type: ignore[arg-type]
            max_new_tokens=26,
            do_sample=False,
        )
        assert capsys.readouterr().out.strip() == Letters().decode(expected[0, 5 * skip :])
    streamer = TextStreamer(Letters())  # type: ignore[arg-type]
    greedy(
        model,
        inputs,
        custom_generate=partial(pass_generate, streamer=streamer),
        streamer=streamer,
        lookahead=vectors(model),
    )
    assert capsys.readouterr().out.strip() == Letters().decode(expected[0])


@FUSED
def test_stop_strings_end_a_text_inside_a_block(fused: bool) -> None:
    from transformers import AutoTokenizer

    from pass_sampling.gpu.checkpoints import LOOKAHEAD, MODEL
    from pass_sampling.gpu.hf.model_checks import load_with_transformers

    tokenizer, model = AutoTokenizer.from_pretrained(str(MODEL)), load_with_transformers(MODEL, "float32")
    inputs = tokenizer("def find(self, name):\n", return_tensors="pt")
    settings = {"max_new_tokens": 40, "do_sample": False, "stop_strings": ["return", "zzzz"], "tokenizer": tokenizer}
    expected = model.generate(**inputs, **settings)
    assert inputs["input_ids"].shape[1] < expected.shape[1] < inputs["input_ids"].shape[1] + 40
    found = generate_with_pass(model, **inputs, lookahead=LOOKAHEAD, fused=fused, **settings)
    assert torch.equal(found, expected)


class Forced(LogitsProcessor):
    """Leaves no choice but a text, after a prompt of so many tokens: all drafts of it are accepted."""

    def __init__(self, num_prompt: int, tokens: list[int]):
        self.num_prompt, self.tokens = num_prompt, tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.tokens[min(input_ids.shape[1] - self.num_prompt, len(self.tokens) - 1)]] = 0.0
        return forced


@FUSED
@pytest.mark.parametrize(("stop", "count"), [("世", 3), ("界", 6), ("hi世", 3), ("!<|im_end|>", 9)])
def test_stop_strings_end_a_text_inside_a_run_of_bytes_and_at_special_tokens(
    fused: bool, stop: str, count: int
) -> None:
    """One byte more turns the run into U+FFFD, and a decoder that skips special tokens would never show the last."""
    tokenizer = tokenizer_of("byte fallback")
    prompt = torch.tensor([tokenizer.convert_tokens_to_ids(["<s>", "\u2581hi"])])
    ends = tokenizer.convert_tokens_to_ids(["!", "!", "<|im_end|>", "a"])
    tokens = [*tokenizer.encode("世界", add_special_tokens=False), *ends]
    model = tiny("llama", vocab_size=len(tokenizer))
    settings = {"max_new_tokens": 10, "do_sample": False, "stop_strings": [stop], "tokenizer": tokenizer}
    settings["logits_processor"] = [Forced(2, tokens)]
    expected = model.generate(prompt, **settings)
    assert expected.shape[1] == 2 + count
    found = generate_with_pass(model, prompt, vectors(model, 4), fused=fused, **settings, return_dict_in_generate=True)
    assert torch.equal(found.sequences, expected)
    assert found.generations[0].num_accepted_tokens > 0


def test_a_stop_string_that_no_tokens_make_is_refused_before_anything_is_run() -> None:
    with pytest.raises(
        ValueError, match=r"^stop_strings: found '\\ud800', expected text that the tokenizer can decode to$"
    ):
        generate_with_pass(
            shared("llama"), prompts(1), None, stop_strings=["ok", "\ud800"], tokenizer=tokenizer_of("byte fallback")
        )


def test_defaults_of_generate_hold() -> None:
    model = tiny("llama")
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=5, max_new_tokens=7, do_sample=False)
    inputs = {"input_ids": prompts(1)}
    expected = model.generate(**inputs)
    assert torch.equal(model.generate(**inputs, custom_generate=pass_generate, lookahead=vectors(model)), expected)
    assert torch.equal(generate_with_pass(model, inputs["input_ids"], vectors(model)), expected)


@pytest.mark.gpu
@FUSED
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_greedy_text_is_that_of_generate_on_a_gpu(kind: str, fused: bool) -> None:
    model = tiny(kind).to("cuda")
    inputs = {name: tensor.to("cuda") for name, tensor in padded(2).items()}
    assert torch.equal(with_pass(model, inputs, fused=fused), greedy(model, inputs))
