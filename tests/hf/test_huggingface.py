"""PaSS in transformers' `generate`: the text is the one that `generate` writes, with its processors and criteria."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
    TextStreamer,
    set_seed,
)

from hf_models import ARCHITECTURES, NO_MASKS, VOCAB, greedy, padded, prompts, shared, tiny, with_pass
from pass_sampling.gpu import (
    Ending,
    PaSS,
    PaSSOneCall,
    SamplingConfig,
    TransformersModel,
    generate_with_pass,
    pass_generate,
    untrained_lookahead,
)
from pass_sampling.gpu.checkpoints import LOOKAHEAD, MODEL
from pass_sampling.gpu.hf.generate import PassOutput
from pass_sampling.gpu.hf.model_checks import load_with_transformers
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


@FUSED
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_text_is_that_of_generate(kind: str, fused: bool) -> None:
    """And nothing is drawn for it."""
    model, inputs = shared(kind), {"input_ids": prompts(1)}
    if fused and kind in NO_MASKS:
        with pytest.raises(ValueError, match=r"positions that can be told|layers of the kinds"):
            with_pass(model, inputs, fused=True)
        return
    before = torch.get_rng_state()
    found = with_pass(model, inputs, fused=fused, return_dict_in_generate=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found.sequences, greedy(model, inputs))
    assert found.generations[0].num_draft_tokens > 5


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
@pytest.mark.parametrize(
    ("kind", "length", "counts"),
    [("qwen2", 5, range(1, 9)), ("gpt2", 45, [19]), ("opt", 45, [19])],  # of the last two, the whole context
)
def test_a_text_never_overshoots_its_length(kind: str, length: int, counts: Any, fused: bool) -> None:
    model, inputs = shared(kind), padded(2, length)
    for count in counts:
        expected = greedy(model, inputs, max_new_tokens=count)
        assert torch.equal(with_pass(model, inputs, max_new_tokens=count, fused=fused), expected)


@FUSED
def test_what_is_drawn_is_what_a_step_draws_from_pytorchs_uniforms(fused: bool) -> None:
    model, settings = shared("llama"), {"temperature": 0.7, "top_k": 5}
    texts = []
    for seed in (3, 4):
        set_seed(seed)
        found = with_pass(model, {"input_ids": prompts(1)}, do_sample=True, fused=fused, **settings)
        texts.append(found[0, 5:].tolist())
    assert texts[0] != texts[1]
    set_seed(3)
    vectors = untrained_lookahead(model, 3)
    method = (PaSSOneCall if fused else PaSS)(TransformersModel(model), vectors, SamplingConfig(**settings))
    state = method.start(prompts(1)[0].tolist(), Ending(26))
    while not bool(state.ended):
        state, _ = method.step(state, torch.rand(1, method.num_uniforms, dtype=torch.float64))
    assert texts[0] == list(state.new_tokens)


def test_the_dictionary_is_transformers_own_with_a_record_beside() -> None:
    model = shared("gemma2")
    found = with_pass(model, {"input_ids": prompts(1)}, return_dict_in_generate=True)
    expected = greedy(model, {"input_ids": prompts(1)}, return_dict_in_generate=True)
    assert isinstance(found, type(expected)) and isinstance(found, PassOutput)
    assert found.generations[0].tokens == tuple(found.sequences[0, 5:].tolist())


def test_the_lines_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "huggingface.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    exec(program, {})
    assert capsys.readouterr().out.startswith("def find(self, name):")
    assert f"for {len(ARCHITECTURES)} architectures" in page


class Letters:
    """A tokenizer of one letter per token."""

    def decode(self, tokens: Any, **named: Any) -> str:
        return "".join(chr(97 + int(token) % 26) + str(int(token) // 26) for token in torch.as_tensor(tokens).flatten())


def test_a_streamer_gets_the_prompt_and_then_every_token(capsys: pytest.CaptureFixture[str]) -> None:
    model, inputs = shared("llama"), {"input_ids": prompts(1)}
    expected, vectors = greedy(model, inputs)[0], untrained_lookahead(model, 3)
    for skip in (False, True):
        streamer: Any = TextStreamer(Letters(), skip_prompt=skip)
        settings = {"streamer": streamer, "max_new_tokens": 26, "do_sample": False}
        generate_with_pass(model, **inputs, lookahead=vectors, **settings)
        assert capsys.readouterr().out.strip() == Letters().decode(expected[5 * skip :])
        with_pass(model, inputs, custom_generate=partial(pass_generate, streamer=streamer), streamer=streamer)
        assert capsys.readouterr().out.strip() == Letters().decode(expected[5 * skip :])


@FUSED
@pytest.mark.parametrize("where", ["argument", "config", "folder"])
def test_stop_strings_end_a_text_inside_a_block(where: str, fused: bool) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(str(MODEL)), load_with_transformers(MODEL, "float32")
    inputs, stops = tokenizer("def find(self, name):\n", return_tensors="pt"), ["return", "zzzz"]
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    if where == "argument":
        settings["stop_strings"] = stops
    elif where == "config":
        settings = {"generation_config": GenerationConfig(**settings, stop_strings=stops, eos_token_id=0)}
    else:
        model.generation_config.stop_strings = stops
    expected = model.generate(**inputs, **settings, tokenizer=tokenizer)
    assert inputs["input_ids"].shape[1] < expected.shape[1] < inputs["input_ids"].shape[1] + 40
    assert tokenizer.decode(expected[0]).count("return") == 1
    found = generate_with_pass(model, **inputs, lookahead=LOOKAHEAD, fused=fused, tokenizer=tokenizer, **settings)
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="tokenizer: found None with stop_strings, expected"):
        generate_with_pass(model, **inputs, lookahead=LOOKAHEAD, **settings)


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
def test_stop_strings_end_a_text_inside_a_run_of_bytes_and_at_special_tokens(fused, stop, count):
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
    settings["return_dict_in_generate"] = True
    found = generate_with_pass(model, prompt, untrained_lookahead(model, 4), fused=fused, **settings)
    assert torch.equal(found.sequences, expected)
    assert found.generations[0].num_accepted_tokens > 0


def test_defaults_of_generate_hold() -> None:
    model = tiny("llama")
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=5, max_new_tokens=7, do_sample=False)
    expected, vectors = model.generate(prompts(1)), untrained_lookahead(model, 3)
    assert torch.equal(model.generate(prompts(1), custom_generate=pass_generate, lookahead=vectors), expected)
    assert torch.equal(generate_with_pass(model, prompts(1), vectors), expected)


@pytest.mark.gpu
@FUSED
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_greedy_text_is_that_of_generate_on_a_gpu(kind: str, fused: bool) -> None:
    model = tiny(kind).to("cuda")
    inputs = {name: tensor.to("cuda") for name, tensor in padded(2).items()}
    assert torch.equal(with_pass(model, inputs, fused=fused), greedy(model, inputs))


def call(num_rows: int = 1, **settings: Any) -> dict[str, Any]:
    """Return what `generate` hands to a callable, and what comes back."""
    seen: dict[str, Any] = {}

    def loop(model: Any, input_ids: torch.Tensor, lookahead: Any = None, streamer: Any = None, **named: Any) -> Any:
        seen.update(named, model=model, input_ids=input_ids, lookahead=lookahead, streamer=streamer)
        seen["grad"] = torch.is_grad_enabled()
        return "what it returns"

    seen["returned"] = shared("llama").generate(prompts(num_rows), custom_generate=loop, max_new_tokens=4, **settings)
    return seen


def test_a_callable_is_called_with_what_generate_has_prepared() -> None:
    seen = call(2, do_sample=True, eos_token_id=3, temperature=0.5, lookahead="vectors")
    assert seen["lookahead"] == "vectors" and seen["returned"] == "what it returns" and not seen["grad"]
    names = [type(each).__name__ for each in (*seen["logits_processor"], *seen["stopping_criteria"])]
    assert names[:2] == ["TemperatureLogitsWarper", "TopKLogitsWarper"]  # top-k 50 is the library's default
    assert names[2:] == ["MaxLengthCriteria", "EosTokenCriteria"]
    assert seen["generation_config"].max_length == 9 and int(seen["generation_config"]._pad_token_tensor) == 0
    assert call(num_return_sequences=3, do_sample=True)["input_ids"].shape == (3, 5), "rows come expanded"


@torch.no_grad()
def passes(model: Any, tokens: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
    return model(tokens, past_key_values=cache, use_cache=True).logits[0]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "lfm2"])
def test_a_negative_crop_undoes_a_pass_where_the_past_is_recorded(kind: str) -> None:
    model, tokens = shared(kind), prompts(1, 20)
    cache = DynamicCache(config=model.config)
    for layer in cache.layers:
        if hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    passes(model, tokens[:, :12], cache)
    cache.crop(0)
    passes(model, prompts(1, 5, seed=1), cache)
    cache.crop(-5)
    assert cache.get_seq_length() == 12
    found, expected = passes(model, tokens[:, 12:], cache), passes(model, tokens)[12:]
    assert (found - expected).abs().max() < 1e-5  # the library's norms are in float32


@torch.no_grad()
def test_a_head_works_apart_from_its_body() -> None:
    model, logits = shared("granite"), shared("granite")(prompts(1)).logits
    hidden = model.base_model(prompts(1)).last_hidden_state
    assert not torch.allclose(model.get_output_embeddings()(hidden), logits)  # it scales
    assert torch.equal(TransformersModel(model).logits(hidden), logits)
    assert torch.equal(TransformersModel(model).logits_of(hidden, torch.arange(3)), logits[..., :3])
