"""What PaSS in transformers' `generate` refuses: in one sentence, before any pass over the text."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    StaticCache,
    StoppingCriteriaList,
    TextStreamer,
)

from hf_models import VOCAB, config_of, padded, prompts, shared, tiny
from pass_sampling.gpu import (
    Adapter,
    FusedPaSS,
    LookAhead,
    ModelConfig,
    TransformersModel,
    generate_with_pass,
    pass_generate,
    untrained_lookahead,
)
from pass_sampling.gpu.hf.model_checks import check_masks, check_rope
from pass_sampling.gpu.hf.rows import RowCache

VECTORS = LookAhead.random(3, 16, seed=0)


@contextmanager
def refusing(message: str, model: Any = None) -> Iterator[None]:
    """Expect one sentence, and no pass of a model that was seen before."""
    count = 0

    def pre(*arguments: Any) -> None:
        nonlocal count
        count += 1

    hook = None if model is None else model.register_forward_pre_hook(pre)
    with pytest.raises(ValueError, match=message) as caught:
        yield
    if hook is not None:
        hook.remove()
    assert count == 0
    text = str(caught.value)
    assert "expected" in text and "\n" not in text and not text.endswith(".")


def write(model: Any, inputs: Any = None, **settings: Any) -> Any:
    given = {"custom_generate": pass_generate, "lookahead": VECTORS, "max_new_tokens": 8, "do_sample": False}
    inputs = {"input_ids": prompts(1)} if inputs is None else inputs
    return model.generate(**inputs, **given | settings)


# --- Models ---


def test_what_is_no_causal_model_of_transformers() -> None:
    with refusing("model: found a Linear, expected a causal language model"):
        TransformersModel(torch.nn.Linear(2, 2))
    with refusing("model: found a LlamaModel"):
        TransformersModel(shared("llama").model)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mamba2", {"num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 4}),
        ("falcon_h1", {}),
        ("recurrent_gemma", {}),
    ],
)
def test_models_with_a_recurrent_state(kind: str, settings: dict[str, Any]) -> None:
    with refusing("recurrent state cannot be rolled back"):
        write(tiny(kind, torch.float32, **settings))


def test_an_encoder_and_a_decoder() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with refusing("an encoder and a decoder, expected a decoder alone"):
        TransformersModel(T5ForConditionalGeneration(config).eval())


def test_embeddings_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    model.config.hidden_size_per_layer_input = 8
    with refusing("embeddings of tokens in every layer"):
        TransformersModel(model)


def test_a_model_in_training_mode() -> None:
    with refusing("in training mode, expected model.eval()"):
        TransformersModel(tiny("gpt2").train())


def test_different_vocabularies_for_reading_and_writing() -> None:
    model = tiny("llama")
    model.lm_head = torch.nn.Linear(16, VOCAB + 3, bias=False, dtype=model.dtype)
    with refusing(f"logits of {VOCAB + 3} tokens, expected those of the {VOCAB} tokens it reads"):
        TransformersModel(model)


def test_a_body_without_a_cache_of_the_library() -> None:
    with refusing("takes no past_key_values"):
        TransformersModel(tiny("openai-gpt", torch.float32, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def test_a_model_whose_cache_cannot_be_rolled_back_is_found_out_by_passes() -> None:
    model = tiny("llama")
    body, total = model.model, []

    def remember(module: Any, arguments: Any, named: dict[str, Any]) -> Any:
        total.append(named["inputs_embeds"].sum() if named.get("inputs_embeds") is not None else torch.zeros(()))
        named["inputs_embeds"] = None if total[-1] == 0 else named["inputs_embeds"] + 0.1 * sum(total)
        return arguments, named

    body.register_forward_pre_hook(remember, with_kwargs=True)
    with refusing("whose logits after a pass with a rolled-back cache are not those of plain passes"):
        TransformersModel(model)


def packed(linear: Any) -> torch.nn.Module:
    """A layer in the manner of quantised ones that keep no `weight`."""
    found = torch.nn.Module()
    found.register_buffer("qweight", linear.weight.detach().char())
    found.forward = lambda x: torch.nn.functional.linear(x, found.qweight.to(x))
    return found


def quantised(part: str) -> Any:
    model, dynamic = tiny("llama", torch.float32), torch.ao.quantization.quantize_dynamic
    if part == "everything":
        return dynamic(model, {torch.nn.Linear})
    if part == "the head":
        return dynamic(model, {"lm_head"})
    if part == "the body":
        model.model = dynamic(model.model, {torch.nn.Linear})
    elif part == "the embedding":
        model.set_input_embeddings(torch.ao.nn.quantized.Embedding(VOCAB, 16))
    elif part == "a head without weight":
        model.lm_head = packed(model.lm_head)
    else:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().char(), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("everything", "torch.ao.nn.quantized.dynamic.modules.linear.Linear"),
        ("the head", "torch.ao.nn.quantized.dynamic.modules.linear.Linear"),
        ("the body", "torch.ao.nn.quantized.dynamic.modules.linear.Linear"),
        ("the embedding", "torch.ao.nn.quantized.modules.embedding_ops.Embedding"),
        ("a head without weight", "torch.nn.modules.module.Module"),
        ("a head of integers", "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore::UserWarning")
def test_a_model_with_quantised_layers(part: str, kind: str) -> None:
    found = rf"with weights that are not floating-point numbers \({re.escape(kind)}\)"
    with refusing(f"model: found LlamaForCausalLM {found}, expected"):
        write(quantised(part))


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("bloom", "BloomForCausalLM, whose body takes no position_ids"),
        ("mpt", "MptForCausalLM, whose body takes no position_ids"),
        ("falcon", "FalconForCausalLM, whose attention counts distances in the cache, alibi"),
    ],
)
def test_positions_that_no_mask_can_move(kind: str, found: str) -> None:
    model = tiny("falcon", alibi=True) if kind == "falcon" else shared(kind)
    with refusing(f"model: found {found}, expected positions that can be told to it"):
        write(model, fused=True)
    assert torch.equal(write(model), model.generate(prompts(1), max_new_tokens=8, do_sample=False))  # in two calls


def test_masks_for_attention_that_takes_none() -> None:
    model = tiny("llama")
    model.config._attn_implementation = "flash_attention_2"
    with refusing("attn_implementation: found 'flash_attention_2', expected 'eager' or 'sdpa'"):
        check_masks(model, model.config)


# --- Settings and arguments of generate ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "num_beams: found 2, expected 1"),
        ({"prompt_lookup_num_tokens": 3}, "settings for assisted_generation, expected greedy decoding or sampling"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "settings for contrastive_search"),
        ({"guidance_scale": 1.5}, "guidance_scale: found 1.5, expected None"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores: found True, expected False"),
        ({"output_logits": True, "return_dict_in_generate": True}, "output_logits: found True"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions: found True"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states: found True"),
        ({"use_cache": False}, "use_cache: found False, expected True"),
        ({"cache_implementation": "static"}, "past_key_values: found a StaticCache, expected a DynamicCache"),
        ({"cache_implementation": "offloaded"}, "past_key_values: found an offloaded one"),
        ({"max_new_tokens": 60}, "max_new_tokens: found a prompt of 5 tokens and 60 new ones, expected at most 64"),
        ({"lookahead": None}, "lookahead: found None, expected a LookAhead, or the folder of one"),
        ({"num_lookahead": 4}, "num_lookahead: found 4"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the library's own advice
def test_settings_that_would_not_be_exact(settings: dict[str, Any], message: str) -> None:
    model = shared("llama")
    TransformersModel(model)
    with refusing(message, model):
        write(model, **settings)


def test_an_assistant() -> None:
    with refusing("assistant_model: found one, expected none"):
        generate_with_pass(shared("llama"), prompts(1), VECTORS, assistant_model=shared("llama"))


def test_stop_strings_without_a_tokenizer() -> None:
    with refusing("tokenizer: found None with stop_strings"):
        generate_with_pass(shared("llama"), prompts(1), VECTORS, stop_strings=["x"])


def test_input_vectors_instead_of_a_prompt() -> None:
    model = shared("llama")
    with refusing("inputs_embeds: found a Tensor, expected a prompt of tokens alone", model):
        write(model, {"inputs_embeds": model.get_input_embeddings()(prompts(1)).detach()})


def test_padding_after_the_text() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    with refusing("attention_mask: found zeros after a token, expected padding in front"):
        write(shared("llama"), {"input_ids": prompts(1), "attention_mask": mask})


def test_positions_of_another_kind() -> None:
    with refusing("position_ids: found positions of another kind"):
        write(shared("llama"), position_ids=torch.tensor([[3, 4, 5, 6, 7]]))


def test_caches_of_several_rows_or_as_long_as_the_prompt() -> None:
    model, cache = shared("llama"), DynamicCache(config=shared("llama").config)
    with torch.no_grad():
        model(prompts(2, 3), past_key_values=cache)
    with refusing("past_key_values: found 3 positions of 2 rows"):
        write(model, padded(2), past_key_values=cache)
    static = StaticCache(config=model.config, max_cache_len=32)
    with refusing("past_key_values: found a StaticCache"):
        write(model, past_key_values=static)


def test_a_streamer_for_several_rows() -> None:
    with refusing("streamer: found one with 2 rows, expected it with one"):
        generate_with_pass(shared("llama"), prompts(2), VECTORS, streamer=Silent(), max_new_tokens=4)


class Silent(TextStreamer):
    def __init__(self) -> None:
        pass

    def put(self, value: Any) -> None:
        pass


def test_rows_that_may_end_apart_without_a_token_to_pad_with() -> None:
    model = tiny("llama")
    model.generation_config.pad_token_id = None
    criteria = StoppingCriteriaList([MaxTimeCriteria(60.0)])
    with refusing("pad_token_id: found None with rows that may end apart"):
        write(model, {"input_ids": prompts(2)}, stopping_criteria=criteria)


def test_processors_with_a_memory() -> None:
    class SynthIDTextWatermarkLogitsProcessor(LogitsProcessor):
        pass

    with refusing("logits_processor: found SynthIDTextWatermarkLogitsProcessor"):
        write(shared("llama"), logits_processor=LogitsProcessorList([SynthIDTextWatermarkLogitsProcessor()]))


def test_rotary_frequencies_that_change_within_the_text() -> None:
    factors = [1.0] * 4
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 1e4}
    config = config_of("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    check_rope(config, 5, 11)
    check_rope(config, 17, 20, num_beyond=3)
    with refusing("max_new_tokens: found a prompt of 5 tokens and 12 new ones, expected at most 16 together"):
        check_rope(config, 5, 12)
    with refusing("expected at most 13 together"):
        check_rope(config, 5, 11, num_beyond=3)
    check_rope(config_of("llama"), 5, 10**6)


def test_without_transformers_its_absence_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import pass_sampling.gpu as port

    monkeypatch.delitem(sys.modules, "pass_sampling.gpu.hf.generate", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="found no transformers, expected it installed"):
        _ = port.pass_generate


# --- Vectors ---


def test_vectors_of_another_width_or_vocabulary() -> None:
    with refusing("the look-ahead vectors have hidden_size 8, expected 16"):
        write(shared("llama"), lookahead=LookAhead.random(3, 8, seed=0))
    with refusing(f"lookahead: found vectors for 31 tokens, expected {VOCAB}"):
        write(shared("llama"), lookahead=replace(VECTORS, base_shapes={"vocab_size": 31}))


def test_vectors_with_an_adapter() -> None:
    adapter = Adapter.random(ModelConfig(VOCAB, 16, 32, 3, 2, 1, 8, 64), 2, 0)
    for each in (write, lambda model, lookahead: FusedPaSS(TransformersModel(model), lookahead)):
        with refusing("adapter"):
            each(shared("llama"), lookahead=replace(VECTORS, adapter=adapter))


def test_vectors_that_may_be_another_models_are_noted() -> None:
    other = replace(VECTORS, fingerprint="0" * 64, base_model="another")
    with pytest.warns(UserWarning, match="trained for 'another', and that 'LlamaForCausalLM' is the same"):
        write(shared("llama"), lookahead=other)
    own = replace(VECTORS, fingerprint=TransformersModel(shared("llama")).fingerprint)
    write(shared("llama"), lookahead=own)


def test_untrained_vectors_are_checked() -> None:
    with refusing("num_lookahead: found -1"):
        untrained_lookahead(shared("llama"), -1)


# --- Caches ---


def test_a_window_is_not_rolled_back_beyond_the_last_pass() -> None:
    row = RowCache(DynamicCache(config=shared("mistral").config))
    row.grow(4)
    row.grow(4)
    with refusing("length: found 3, expected at least 4"):
        row.settle(3)


def test_a_tree_of_drafts() -> None:
    with refusing("rows: found a tree of drafts over a model of transformers"):
        TransformersModel(shared("llama")).new_cache().keep(torch.zeros((1, 1), dtype=torch.long))
