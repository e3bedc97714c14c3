"""Every setting of transformers' GenerationConfig does in PaSS what it does in `generate`, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from generation_settings import OTHER_VALUES, settings_of
from hf_models import prompts, tiny
from pass_sampling.gpu import LookAhead, pass_generate
from pass_sampling.reference.checkpoint.generation_settings import APPLIED, OTHERS

OURS = {"custom_generate": pass_generate, "lookahead": LookAhead.random(3, 16, seed=0)}
REFUSED = {  # by PaSS; of others `generate` has no text either
    *("use_cache", "cache_implementation", "num_beams", "use_mtp", "guidance_scale", "is_assistant"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha", "dola_layers"),
    *("constraints", "force_words_ids"),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own advice


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


def test_what_the_folders_readers_pass_over_changes_no_text(model: Any) -> None:
    plain = outcome(model, {})
    no_text = {*settings_of()} - {*APPLIED, *OTHERS, "max_length", "max_new_tokens"}
    passed_over = {name: OTHER_VALUES[name][1] for name in no_text} | OTHERS
    found = {name: outcome(model, {name: value}) for name, value in passed_over.items()}
    refused = {name for name, text in found.items() if isinstance(text, Exception)}
    assert refused == {"compile_config", "num_return_sequences", "use_mtp"}  # by the library itself
    assert [name for name in found if name not in refused and found[name] != plain] == []
