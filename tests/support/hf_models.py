"""Tiny random models of transformers, of many architectures, for the tests of PaSS in its `generate`."""

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from pass_sampling.gpu import pass_generate, untrained_lookahead

VOCAB = 29
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 8}
EXPERTS = {"num_experts_per_tok": 1, "moe_intermediate_size": 8}
WINDOW = {"sliding_window": 6}  # much less than the texts that are written
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

LATENT = {
    **EXPERTS,
    "n_routed_experts": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 2,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "head_dim": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama4_text": {**HEADS, **EXPERTS, "num_local_experts": 2, "attention_chunk_size": 6, "intermediate_size_mlp": 16},
    "mistral": WINDOW,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": HEADS,
    "qwen3_moe": {**HEADS, **EXPERTS, "num_experts": 2},
    "gemma": HEADS,
    "gemma2": {**HEADS, **MIXED},
    "gemma3_text": {**HEADS, **MIXED},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 4},
    "gpt_oss": {**HEADS, **MIXED, "num_local_experts": 2, "num_experts_per_tok": 1},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "olmo3": MIXED,
    "smollm3": {},
    "falcon": {"alibi": False},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "bloom": {"n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2},
    "stablelm": {},
    "starcoder2": {},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "cohere2": MIXED,
    "exaone4": MIXED,
    "nemotron": {},
    "glm4": {},
    "deepseek_v3": LATENT,
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
}
OF_EXPERTS = {"qwen3_moe", "gpt_oss", "mixtral", "llama4_text", "deepseek_v3"}  # whose library kernel knows no float64
NO_MASKS = {"bloom", "mpt", "lfm2", "llama4_text"}  # positions by distance in the cache, convolutions, chunks


def config_of(kind: str, **changes: Any) -> Any:
    settings = {**SIZES, **ARCHITECTURES.get(kind, {}), **changes}
    return AutoConfig.for_model(kind, **settings)


def tiny(kind: str, dtype: torch.dtype = torch.float64, scale: float = 6.0, **changes: Any) -> Any:
    """A model whose distributions are neither flat nor sharp, from the weights that the library begins with."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(kind, **changes)).eval().to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(scale)
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


@cache
def shared(kind: str) -> Any:
    """The same model for all tests that leave it as it is."""
    return tiny(kind, torch.float32 if kind in OF_EXPERTS else torch.float64)


def prompts(num_rows: int, length: int = 5, seed: int = 0) -> torch.Tensor:
    """Rows of tokens, none of which is one of padding or of an end."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCAB, (num_rows, length), generator=generator)


def padded(num_rows: int, length: int = 5) -> dict[str, torch.Tensor]:
    """Such rows with 0, 1, 2 and so on tokens of padding in front, as a tokenizer gives them."""
    tokens = prompts(num_rows, length)
    mask = torch.arange(length) >= torch.arange(num_rows).unsqueeze(1)
    return {"input_ids": tokens * mask, "attention_mask": mask.long()}


def greedy(model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
    """What the library's own `generate` returns."""
    return model.generate(**inputs, **{"max_new_tokens": 26, "do_sample": False} | settings)


def with_pass(model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
    """What it returns with PaSS."""
    given = {"custom_generate": pass_generate}
    given |= {} if "lookahead" in settings else {"lookahead": untrained_lookahead(model, 3)}
    return greedy(model, inputs, **given | settings)
