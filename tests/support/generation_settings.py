"""Every setting of transformers' GenerationConfig, with its default and with a value that is another."""

from typing import Any

SAMPLE = {"do_sample": True, "temperature": 3.0}  # so flat that a sampler which is passed over shows
END = {"eos_token_id": 14}
# What a setting needs beside it to have an effect; most need nothing.
NEEDED: dict[str, dict[str, Any]] = {
    **{"min_length": END, "min_new_tokens": END, "exponential_decay_length_penalty": {"eos_token_id": 2}},
    **{"do_sample": {"temperature": 0.5}, "temperature": {"do_sample": True}},
    **dict.fromkeys(("top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff"), SAMPLE),
    **{"eta_cutoff": {"do_sample": True, "temperature": 0.01}, "num_return_sequences": {"do_sample": True, "top_k": 1}},
}
# What each setting is set to.
VALUES: dict[str, Any] = {
    **{"max_length": 9, "max_new_tokens": 3, "min_length": 12, "min_new_tokens": 6, "early_stopping": True},
    **{"max_time": 1e-9, "stop_strings": ["e"], "do_sample": True, "num_beams": 2, "use_mtp": True},
    **{
        "use_cache": False,
        "cache_implementation": "static",
        "cache_config": {"backend": "quanto"},
        "max_cache_len": 64,
    },
    **{"temperature": 1e-3, "top_k": 1, "top_p": 1e-6, "min_p": 1.0, "top_h": 1e-6, "typical_p": 1e-6},
    **{"epsilon_cutoff": 0.999, "eta_cutoff": 0.5, "repetition_penalty": 5.0, "encoder_repetition_penalty": 5.0},
    **{"length_penalty": 2.0, "no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1},
    **{"bad_words_ids": [[14], [7]], "renormalize_logits": True, "forced_bos_token_id": 5, "forced_eos_token_id": 2},
    **{"remove_invalid_values": True, "exponential_decay_length_penalty": [2, 9.0], "suppress_tokens": [12, 14]},
    **{"begin_suppress_tokens": [12], "sequence_bias": [[[5], 9.0]], "token_healing": True, "guidance_scale": 1.5},
    **{"watermarking_config": {"bias": 9.0}, "num_return_sequences": 2, "output_attentions": True},
    **{"output_hidden_states": True, "output_scores": True, "output_logits": True, "return_dict_in_generate": True},
    **{"pad_token_id": 3, "bos_token_id": 5, "eos_token_id": [14, 15], "decoder_start_token_id": 4},
    **{"is_assistant": True, "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic"},
    **{"assistant_confidence_threshold": 0.9, "prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 3},
    **{"assistant_early_exit": 1, "assistant_lookbehind": 3, "target_lookbehind": 3, "assistant_ensemble_weight": 0.5},
    **{"speculation_type": "dflash", "compile_config": {"mode": "default"}, "disable_compile": True},
    **{"continuous_batching_config": {"num_blocks": 4}, "low_memory": True, "penalty_alpha": 0.6, "dola_layers": "low"},
    **{"diversity_penalty": 0.5, "num_beam_groups": 2, "constraints": [1], "force_words_ids": [[5]]},
    **{"prefill_chunk_size": 2, "transformers_version": "4.0.0"},
}
OTHER_VALUES = {name: (NEEDED.get(name, {}), value) for name, value in VALUES.items()}


def settings_of() -> dict[str, Any]:
    """Every setting that the class has, with the value that `generate` uses where it is not given."""
    from transformers import GenerationConfig

    config = GenerationConfig()
    return {name: None for name in vars(config) if name[0] != "_"} | config._get_default_generation_params()
