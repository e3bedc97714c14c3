"""What PaSS relies on in transformers, version by version: each test is one behaviour of the library."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from transformers import DynamicCache

from hf_models import prompts, shared, tiny
from pass_sampling.gpu import TransformersModel


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


def test_a_mask_has_zeros_for_padding_alone_and_the_cache_is_empty() -> None:
    seen = call(2, attention_mask=torch.ones(2, 5, dtype=torch.long))
    assert seen["attention_mask"] is None or bool(seen["attention_mask"].all())  # newer versions leave it out
    assert type(seen["past_key_values"]) is DynamicCache and seen["past_key_values"].get_seq_length() == 0
    assert seen["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2


def test_positions_count_the_tokens_after_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    seen = call(2, attention_mask=mask)
    assert torch.equal(seen["attention_mask"], mask) and seen["position_ids"][1, 2:].tolist() == [0, 1, 2]


def test_a_streamer_is_shown_the_prompt_and_not_handed_on() -> None:
    streamer = Mock()
    assert call(streamer=streamer)["streamer"] is None and streamer.put.call_count == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"unheard_of": 1}, "not used by the model"), ({"stop_strings": ["x"], "tokenizer": object()}, "tokenizer")],
)
def test_a_callable_gets_no_argument_that_is_not_named_and_no_tokenizer(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**settings)


def test_an_assistant_is_dropped_before_a_callable_and_a_prompt_lookup_is_not() -> None:
    seen = call(assistant_model=shared("llama"))
    assert "assistant_model" not in seen and seen["generation_config"].get_generation_mode() == "greedy_search"
    assert call(prompt_lookup_num_tokens=3)["generation_config"].get_generation_mode() == "assisted_generation"


# --- Caches ---


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


def test_a_window_forgets_what_is_not_recorded() -> None:
    cache = DynamicCache(config=shared("mistral").config)
    passes(shared("mistral"), prompts(1, 12), cache)
    with pytest.raises(RuntimeError, match="does not track past"):
        cache.crop(-2)


def test_windows_are_told_by_the_layers_of_a_cache_made_from_the_config() -> None:
    cache = DynamicCache(config=shared("gemma3_text").config)
    assert [getattr(layer, "sliding_window", None) for layer in cache.layers] == [6, None, 6]
    assert cache.layers[0].get_mask_sizes(3) == (3, 0)
    passes(shared("gemma3_text"), prompts(1, 10), cache)
    assert [layer.get_mask_sizes(3) for layer in cache.layers[:2]] == [(8, 5), (13, 0)]


# --- Masks and input vectors ---


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2"])
@torch.no_grad()
def test_input_vectors_are_those_of_the_embedding_module(kind: str) -> None:
    model, tokens = shared(kind), prompts(1, 8)
    found = model(inputs_embeds=model.get_input_embeddings()(tokens), use_cache=False).logits
    assert torch.equal(found, model(tokens, use_cache=False).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_an_additive_mask_is_taken_as_it_is_and_one_of_truth_values_misread_by_eager_attention(attention: str) -> None:
    model, tokens, seen = tiny("llama", attn_implementation=attention), prompts(1, 8), torch.ones(8, 8).tril().bool()
    additive = torch.zeros(8, 8, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
    expected = model(tokens).logits
    assert (model(tokens, attention_mask=additive[None, None]).logits - expected).abs().max() < 1e-5
    if attention == "eager":
        assert (model(tokens, attention_mask=seen[None, None]).logits - expected).abs().max() > 1e-3


@torch.no_grad()
def test_a_head_works_apart_from_its_body() -> None:
    model, logits = shared("granite"), shared("granite")(prompts(1)).logits
    hidden = model.base_model(prompts(1)).last_hidden_state
    assert not torch.allclose(model.get_output_embeddings()(hidden), logits)  # it scales
    assert torch.equal(TransformersModel(model).logits(hidden), logits)
    assert torch.equal(TransformersModel(model).logits_of(hidden, torch.arange(3)), logits[..., :3])
