"""What PaSS relies on in transformers, version by version: each test is one behaviour of the library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, TextStreamer

from hf_models import prompts, shared, tiny

Seen = dict[str, Any]


def call(model: Any, inputs: torch.Tensor, **settings: Any) -> Seen:
    """What `generate` hands to a callable."""
    seen: Seen = {}

    def loop(model: Any, input_ids: torch.Tensor, lookahead: Any = None, streamer: Any = None, **named: Any) -> Any:
        seen.update(named, model=model, input_ids=input_ids, lookahead=lookahead, streamer=streamer)
        seen["grad"] = torch.is_grad_enabled()
        return "what it returns"

    seen["returned"] = model.generate(inputs, custom_generate=loop, max_new_tokens=4, **settings)
    return seen


def test_a_callable_is_called_with_what_generate_has_prepared() -> None:
    seen = call(shared("llama"), prompts(2), do_sample=True, eos_token_id=3, temperature=0.5, lookahead="vectors")
    assert seen["lookahead"] == "vectors" and seen["returned"] == "what it returns" and not seen["grad"]
    names = [type(each).__name__ for each in seen["logits_processor"]]
    assert names == ["TemperatureLogitsWarper", "TopKLogitsWarper"]  # top-k 50 is the library's default
    assert [type(each).__name__ for each in seen["stopping_criteria"]] == ["MaxLengthCriteria", "EosTokenCriteria"]
    assert seen["generation_config"].max_length == 9
    assert int(seen["generation_config"]._pad_token_tensor) == 0


def test_a_mask_has_zeros_for_padding_alone_and_the_cache_is_empty() -> None:
    seen = call(shared("llama"), prompts(2), attention_mask=torch.ones(2, 5, dtype=torch.long))
    assert seen["attention_mask"] is None or bool(seen["attention_mask"].all())  # newer versions leave it out
    assert type(seen["past_key_values"]) is DynamicCache and seen["past_key_values"].get_seq_length() == 0
    assert seen["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2


def test_positions_count_the_tokens_after_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    seen = call(shared("llama"), prompts(2), attention_mask=mask)
    assert torch.equal(seen["attention_mask"], mask)
    assert seen["position_ids"][1, 2:].tolist() == [0, 1, 2]


def test_rows_come_expanded() -> None:
    assert call(shared("llama"), prompts(1), num_return_sequences=3, do_sample=True)["input_ids"].shape == (3, 5)


def test_a_streamer_is_shown_the_prompt_and_not_handed_on() -> None:
    class Counts(TextStreamer):
        def __init__(self) -> None:
            self.put_rows = 0

        def put(self, value: torch.Tensor) -> None:
            self.put_rows += 1

    streamer = Counts()
    assert call(shared("llama"), prompts(1), streamer=streamer)["streamer"] is None
    assert streamer.put_rows == 1


def test_arguments_that_are_not_named_are_refused() -> None:
    with pytest.raises(ValueError, match="not used by the model"):
        call(shared("llama"), prompts(1), unheard_of=1)


def test_stop_strings_find_no_tokenizer_after_a_callable() -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        call(shared("llama"), prompts(1), stop_strings=["x"], tokenizer=object())


def test_an_assistant_is_dropped_before_a_callable_and_a_prompt_lookup_is_not() -> None:
    seen = call(shared("llama"), prompts(1), assistant_model=shared("llama"))
    assert "assistant_model" not in seen and seen["generation_config"].get_generation_mode() == "greedy_search"
    seen = call(shared("llama"), prompts(1), prompt_lookup_num_tokens=3)
    assert seen["generation_config"].get_generation_mode() == "assisted_generation"


# --- Caches ---


def passes(model: Any, cache: DynamicCache, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, past_key_values=cache, use_cache=True).logits[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "lfm2"])
def test_a_negative_crop_undoes_a_pass_where_the_past_is_recorded(kind: str) -> None:
    model, tokens = shared(kind), prompts(1, 20)
    cache = DynamicCache(config=model.config)
    for layer in cache.layers:
        if hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    passes(model, cache, tokens[:, :12])
    cache.crop(0)
    passes(model, cache, prompts(1, 5, seed=1))
    cache.crop(-5)
    assert cache.get_seq_length() == 12
    found, expected = passes(model, cache, tokens[:, 12:]), passes(model, None, tokens)[12:]  # type: ignore[arg-type]
    assert (found - expected).abs().max() < 1e-5  # the library's norms are in float32


def test_a_window_forgets_what_is_not_recorded() -> None:
    model = shared("mistral")
    cache = DynamicCache(config=model.config)
    passes(model, cache, prompts(1, 12))
    with pytest.raises(RuntimeError, match="does not track past"):
        cache.crop(-2)


def test_windows_are_told_by_the_layers_of_a_cache_made_from_the_config() -> None:
    layers = DynamicCache(config=shared("gemma3_text").config).layers
    assert [getattr(layer, "sliding_window", None) for layer in layers] == [6, None, 6]
    assert layers[0].get_mask_sizes(3) == (3, 0)
    cache = DynamicCache(config=shared("gemma3_text").config)
    passes(shared("gemma3_text"), cache, prompts(1, 10))
    assert cache.layers[0].get_mask_sizes(3) == (8, 5)
    assert cache.layers[1].get_mask_sizes(3) == (13, 0)


# --- Masks and input vectors ---


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2"])
def test_input_vectors_are_those_of_the_embedding_module(kind: str) -> None:
    model, tokens = shared(kind), prompts(1, 8)
    with torch.no_grad():
        found = model(inputs_embeds=model.get_input_embeddings()(tokens), use_cache=False).logits
        assert torch.equal(found, model(tokens, use_cache=False).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_additive_mask_is_taken_as_it_is(attention: str) -> None:
    model, tokens = tiny("llama", attn_implementation=attention), prompts(1, 8)
    mask = torch.zeros(8, 8, dtype=model.dtype).masked_fill(
        ~torch.ones(8, 8).tril().bool(), torch.finfo(model.dtype).min
    )
    with torch.no_grad():
        found = model(tokens, attention_mask=mask[None, None]).logits
        assert (found - model(tokens).logits).abs().max() < 1e-5


def test_a_mask_of_truth_values_is_misread_by_eager_attention() -> None:
    model, tokens = tiny("llama", attn_implementation="eager"), prompts(1, 8)
    with torch.no_grad():
        found = model(tokens, attention_mask=torch.ones(8, 8).tril().bool()[None, None]).logits
        assert (found - model(tokens).logits).abs().max() > 1e-3


def test_a_head_works_apart_from_its_body() -> None:
    model = shared("granite")
    with torch.no_grad():
        hidden = model.base_model(prompts(1)).last_hidden_state
        assert not torch.allclose(model.get_output_embeddings()(hidden), model(prompts(1)).logits)  # it scales
    from pass_sampling.gpu import TransformersModel

    assert torch.equal(TransformersModel(model).logits(hidden), model(prompts(1)).logits.detach())
    some = torch.arange(3).expand(*hidden.shape[:-1], -1)
    assert torch.equal(TransformersModel(model).logits_of(hidden, some), model(prompts(1)).logits.detach()[..., :3])
