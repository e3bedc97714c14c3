"""What PaSS in transformers' `generate` refuses: in one sentence, before any pass over the text."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    MaxTimeCriteria,
    T5Config,
    T5ForConditionalGeneration,
)

from generation_settings import OTHER_VALUES, settings_of
from hf_models import VOCAB, config_of, greedy, prompts, shared, tiny, with_pass
from pass_sampling.gpu import Adapter, LookAhead, ModelConfig, TransformersModel, generate_with_pass, pass_generate
from pass_sampling.gpu.hf.model_checks import check_masks, check_rope
from pass_sampling.gpu.hf.rows import RowCache
from pass_sampling.reference.checkpoint.generation_settings import APPLIED, OTHERS, SAMPLING

VECTORS = LookAhead.random(3, 16, seed=0)
with_adapter = replace(VECTORS, adapter=Adapter.random(ModelConfig(VOCAB, 16, 32, 3, 2, 1, 8, 64), 2, 0))


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Expect one sentence, and no pass of the shared model."""
    passes: list[Any] = []
    hook = shared("llama").register_forward_pre_hook(lambda *arguments: passes.append(arguments))
    with pytest.raises(ValueError, match=message) as caught:
        yield
    hook.remove()
    text = str(caught.value)
    assert "expected" in text and "\n" not in text and not text.endswith(".") and not passes


def write(model: Any = None, inputs: Any = None, **settings: Any) -> Any:
    model = shared("llama") if model is None else model
    given = {"lookahead": VECTORS, "max_new_tokens": 8} | settings
    return with_pass(model, {"input_ids": prompts(1)} if inputs is None else inputs, **given)


def edited(model: Any, name: str, value: Any) -> Any:
    """Return a model with another setting."""
    setattr(model.config, name, value)
    return model


def with_wide_head() -> Any:
    model = tiny("llama")
    model.lm_head = torch.nn.Linear(16, VOCAB + 3, bias=False, dtype=model.dtype)
    return model


def with_memory() -> Any:
    """Return a model that adds to a pass what it was fed before, however its cache was rolled back."""
    model, total = tiny("llama"), []

    def remember(module: Any, arguments: Any, named: dict[str, Any]) -> Any:
        total.append(named["inputs_embeds"].sum() if named.get("inputs_embeds") is not None else torch.zeros(()))
        named["inputs_embeds"] = None if total[-1] == 0 else named["inputs_embeds"] + 0.1 * sum(total)
        return arguments, named

    model.model.register_forward_pre_hook(remember, with_kwargs=True)
    return model


def encoder_and_decoder() -> Any:
    sizes = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes)).eval()


def quantised(part: str) -> Any:
    model, dynamic = tiny("llama", torch.float32), torch.ao.quantization.quantize_dynamic
    if part == "everything":
        return dynamic(model, {torch.nn.Linear})
    if part == "the head":
        return dynamic(model, {"lm_head"})
    if part == "the body":
        model.model = dynamic(model.model, {torch.nn.Linear})
    else:
        model.set_input_embeddings(torch.ao.nn.quantized.Embedding(VOCAB, 16))
    return model


MAMBA = {"num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 4}
OLD = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
DYNAMIC = "torch.ao.nn.quantized.dynamic.modules.linear.Linear"
NOT_NUMBERS = "model: found LlamaForCausalLM with weights that are not floating-point numbers ({}), expected"
MODELS: list[tuple[str, Callable[[], Any]]] = [
    ("model: found a Linear, expected a causal language model", partial(torch.nn.Linear, 2, 2)),
    ("model: found a LlamaModel", lambda: shared("llama").model),
    ("recurrent state cannot be rolled back", partial(tiny, "mamba2", torch.float32, **MAMBA)),
    ("recurrent state cannot be rolled back", partial(tiny, "falcon_h1", torch.float32)),
    ("recurrent state cannot be rolled back", partial(tiny, "recurrent_gemma", torch.float32)),
    ("an encoder and a decoder, expected a decoder alone", encoder_and_decoder),
    ("embeddings of tokens in every layer", lambda: edited(tiny("llama"), "hidden_size_per_layer_input", 8)),
    ("in training mode, expected model.eval()", lambda: tiny("gpt2").train()),
    (f"logits of {VOCAB + 3} tokens, expected those of the {VOCAB} tokens it reads", with_wide_head),
    ("takes no past_key_values", partial(tiny, "openai-gpt", torch.float32, **OLD)),
    ("whose logits after a pass with a rolled-back cache are not those of plain passes", with_memory),
    *[
        (NOT_NUMBERS.format(kind), partial(quantised, part))
        for part, kind in [
            ("everything", DYNAMIC),
            ("the head", DYNAMIC),
            ("the body", DYNAMIC),
            ("the embedding", "torch.ao.nn.quantized.modules.embedding_ops.Embedding"),
        ]
    ],
]


@pytest.mark.parametrize(("message", "make"), MODELS)
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore::UserWarning")
def test_a_model_whose_distribution_would_not_be_kept(message: str, make: Any) -> None:
    model = make()
    with refusing(re.escape(message)):
        TransformersModel(model)


@pytest.mark.parametrize(
    ("found", "make"),
    [
        ("BloomForCausalLM, whose body takes no position_ids", partial(shared, "bloom")),
        ("MptForCausalLM, whose body takes no position_ids", partial(shared, "mpt")),
        ("FalconForCausalLM, whose attention counts distances in the cache", partial(tiny, "falcon", alibi=True)),
    ],
)
def test_positions_that_no_mask_can_move(found: str, make: Any) -> None:
    model = make()
    with refusing(f"model: found {found}.*, expected positions that can be told to it"):
        write(model, fused=True)
    assert torch.equal(write(model), greedy(model, {"input_ids": prompts(1)}, max_new_tokens=8))  # in two calls


class SynthIDTextWatermarkLogitsProcessor(LogitsProcessor):
    """Has the name of one that remembers what it was asked."""


def filled_cache() -> Any:
    model, cache = tiny("llama"), DynamicCache(config=shared("llama").config)
    with torch.no_grad():
        model(prompts(1, 3), past_key_values=cache)
    return cache


def without_padding_token() -> Any:
    model = tiny("llama")
    model.generation_config.pad_token_id = None
    return model


def adapted(num_rows: int = 1, **settings: Any) -> Any:
    return generate_with_pass(shared("llama"), prompts(num_rows), VECTORS, **settings)


def flash_attention() -> Any:
    model = edited(tiny("llama"), "_attn_implementation", "flash_attention_2")
    check_masks(model, model.config)


def keep_a_tree() -> None:
    TransformersModel(shared("llama")).new_cache().keep(torch.zeros((1, 1), dtype=torch.long))


NARROW, OTHER = LookAhead.random(3, 8, seed=0), replace(VECTORS, base_shapes={"vocab_size": 31})
EMBEDDED = {"inputs_embeds": torch.zeros(1, 5, 16, dtype=torch.float64)}
PADDED_AFTER = {"input_ids": prompts(1), "attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}
TWO_ROWS, WATERMARK = {"input_ids": prompts(2)}, SynthIDTextWatermarkLogitsProcessor()
CALLS: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [  # values that are functions are made when needed
    ("num_beams: found 2, expected 1", write, {"num_beams": 2}),
    ("settings for assisted_generation, expected greedy decoding", write, {"prompt_lookup_num_tokens": 3}),
    ("guidance_scale: found 1.5, expected None", write, {"guidance_scale": 1.5}),
    *[
        (f"{name}: found True, expected False", write, {name: True, "return_dict_in_generate": True})
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    ],
    ("use_cache: found False, expected True", write, {"use_cache": False}),
    ("past_key_values: found a StaticCache of 0 positions", write, {"cache_implementation": "static"}),
    ("past_key_values: found a DynamicCache of 3 positions", write, {"past_key_values": filled_cache}),
    ("max_new_tokens: found a prompt of 5 tokens and 60 new ones, expected at most 64", write, {"max_new_tokens": 60}),
    ("inputs_embeds: found a Tensor, expected a prompt of tokens alone", write, {"inputs": EMBEDDED}),
    ("attention_mask: found zeros after a token, expected padding in front", write, {"inputs": PADDED_AFTER}),
    ("position_ids: found positions of another kind", write, {"position_ids": torch.arange(3, 8)[None]}),
    (
        "pad_token_id: found None with rows that may end apart",
        write,
        {"model": without_padding_token, "inputs": TWO_ROWS, "stopping_criteria": [MaxTimeCriteria(60.0)]},
    ),
    ("logits_processor: found SynthIDTextWatermarkLogitsProcessor", write, {"logits_processor": [WATERMARK]}),
    ("recurrent state cannot be rolled back", write, {"model": partial(tiny, "falcon_h1", torch.float32)}),
    ("lookahead: found None, expected a LookAhead, or the folder of one", write, {"lookahead": None}),
    ("num_lookahead: found 4", write, {"num_lookahead": 4}),
    ("the look-ahead vectors have hidden_size 8, expected 16", write, {"lookahead": NARROW}),
    (f"lookahead: found vectors for 31 tokens, expected {VOCAB}", write, {"lookahead": OTHER}),
    ("adapter", write, {"lookahead": with_adapter}),
    ("assistant_model: found one, expected none", adapted, {"assistant_model": partial(shared, "llama")}),
    ("tokenizer: found None with stop_strings", adapted, {"stop_strings": ["x"]}),
    ("streamer: found one with 2 rows", adapted, {"num_rows": 2, "streamer": Mock, "max_new_tokens": 4}),
    ("rows: found a tree of drafts over a model of transformers", keep_a_tree, {}),
    ("attn_implementation: found 'flash_attention_2', expected 'eager' or 'sdpa'", flash_attention, {}),
]


@pytest.mark.parametrize(("message", "call", "given"), CALLS)
@pytest.mark.filterwarnings("ignore")  # the library's own advice
def test_calls_that_would_not_be_exact(message: str, call: Any, given: dict[str, Any]) -> None:
    TransformersModel(shared("llama"))  # whose first passes find out what it can do
    arguments = {name: value() if callable(value) else value for name, value in given.items()}
    with refusing(message):
        call(**arguments)


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


def test_a_window_is_not_rolled_back_beyond_the_last_pass() -> None:
    row = RowCache(DynamicCache(config=shared("mistral").config))
    row.grow(4)
    row.grow(4)
    with refusing("length: found 3, expected at least 4"):
        row.settle(3)


def test_vectors_that_may_be_another_models_are_noted() -> None:
    with pytest.warns(UserWarning, match="trained for 'another', and that 'LlamaForCausalLM' is the same"):
        write(lookahead=replace(VECTORS, fingerprint="0" * 64, base_model="another"))
    write(lookahead=replace(VECTORS, fingerprint=TransformersModel(shared("llama")).fingerprint))


OURS = {"custom_generate": pass_generate, "lookahead": LookAhead.random(3, 16, seed=0)}
REFUSED = {  # by PaSS; of others `generate` has no text either
    *("use_cache", "cache_implementation", "num_beams", "use_mtp", "guidance_scale", "is_assistant"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha", "dola_layers"),
    *("constraints", "force_words_ids"),
}
quietly = pytest.mark.filterwarnings("ignore")  # the library's own advice


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


def outcome(model: Any, suggested: dict[str, Any], **ways: Any) -> Any:
    """Write with the settings that a folder suggests; return the tokens, or what was raised."""
    lengths = {} if {"max_length", "max_new_tokens"} & set(suggested) else {"max_new_tokens": 8}
    torch.manual_seed(0)
    try:
        model.generation_config = GenerationConfig.from_dict({"pad_token_id": 0} | suggested)
        found = model.generate(prompts(1), **lengths, **ways)
    except Exception as error:
        return error
    return getattr(found, "sequences", found).tolist()


@quietly
@pytest.mark.parametrize("name", sorted(settings_of()))
def test_a_setting_of_the_folder_does_what_it_does_in_generate_or_is_refused(name: str, model: Any) -> None:
    beside, value = OTHER_VALUES[name]
    theirs, ours = outcome(model, beside | {name: value}), outcome(model, beside | {name: value}, **OURS)
    if name in REFUSED:
        assert isinstance(ours, ValueError) and "expected" in str(ours)
    elif isinstance(theirs, Exception):
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
    elif name != "do_sample":  # other draws
        assert ours == theirs


@quietly
def test_what_the_folders_readers_pass_over_changes_no_text(model: Any) -> None:
    plain = outcome(model, {})
    no_text = {*settings_of()} - {*APPLIED, *SAMPLING, *OTHERS, "max_length", "max_new_tokens"}
    passed_over = {name: OTHER_VALUES[name][1] for name in no_text} | OTHERS
    found = {name: outcome(model, {name: value}) for name, value in passed_over.items()}
    refused = {name for name, text in found.items() if isinstance(text, Exception)}
    assert refused == {"compile_config", "num_return_sequences", "use_mtp"}  # by the library itself
    assert [name for name in found if name not in refused and found[name] != plain] == []
