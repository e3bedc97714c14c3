"""The exact distribution of what PaSS writes over models of transformers: that of drawing one token after another."""

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from hf_float64 import Float64Mode, build
from hf_models import config_of
from pass_sampling.gpu import Autoregressive, Ending, PaSS, PaSSOneCall, SamplingConfig, TransformersModel
from pass_sampling.gpu import untrained_lookahead as untrained
from pass_sampling.gpu.hf.generate import processor_hook
from pass_sampling.gpu.hf.rows import RowCache, RowCaches
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution

PROMPT = [0, 1, 1]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "gemma3_text": {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 3},
}
on_methods = pytest.mark.parametrize("method", [PaSS, PaSSOneCall], ids=["two-calls", "one-call"])


class Windowed(TransformersModel):
    """The same model over the caches that `generate` makes: layers with a window keep no more than that."""

    def new_cache(self, capacity: int = 16, batch_size: int = 1) -> RowCaches:
        rows = [RowCache(DynamicCache(config=self.text_config)) for _ in range(batch_size)]
        return RowCaches(rows, torch.zeros(batch_size, dtype=torch.int64), capacity)


@cache
def model_of(kind: str) -> Any:
    """A model of three tokens, wholly in float64, whose distributions are far from one-hot."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        changes = {"num_hidden_layers": 2, "vocab_size": 3, "layer_types": None, **MODELS[kind]}
        model = build(config_of(kind, **{name: value for name, value in changes.items() if value is not None}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


def distribution(method: Any, ending: Ending, **settings: Any) -> OutputDistribution:
    return output_distribution(method, PROMPT, ending, **settings)


@pytest.mark.parametrize("kind", MODELS)
def test_the_distribution_is_that_of_plain_decoding(kind: str) -> None:
    with Float64Mode():
        model, ending = TransformersModel(model_of(kind)), Ending(5, eos_token_ids=[2])
        plain, windowed = distribution(Autoregressive(model), ending), "sliding_window" in MODELS[kind]
        adapters = (model, Windowed(model_of(kind))) if windowed else (model,)
        for adapter, method in product(adapters, (PaSS, PaSSOneCall)):
            found = distribution(method(adapter, untrained(model_of(kind), 2)), ending)
            assert len(found) == len(plain) == 63
            assert sum(count > 0 for count in found.verified) >= 2
            assert found.largest_deviation(plain) < 1e-12


@on_methods
def test_the_distribution_holds_with_processors_and_a_criterion(method: Any) -> None:
    with Float64Mode():
        model = TransformersModel(model_of("gpt2"))
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5), TopPLogitsWarper(0.9)])
        hook = processor_hook(processors, torch.tensor([PROMPT]), 0, 0, torch.float64)
        ending = Ending(5, criterion=lambda tokens: tokens[-1] == 2 and len(tokens) % 2 == 0)
        plain = distribution(Autoregressive(model, processor=hook), ending)
        settings = {"processor": hook, "draft_sampling": SamplingConfig(temperature=2.0)}
        found = distribution(method(model, untrained(model_of("gpt2"), 2), **settings), ending)
        assert found.largest_deviation(plain) < 1e-12
        assert {len(tokens) for tokens in found} == {2, 4, 5}


def test_plain_decoding_has_the_distribution_of_the_librarys_own_rows() -> None:
    with Float64Mode():
        model = model_of("gemma3_text")
        found = distribution(Autoregressive(TransformersModel(model)), Ending(3))
        for tokens, prob in found.items():
            with torch.no_grad():
                rows = model(torch.tensor([[*PROMPT, *tokens]]), use_cache=False).logits[0, len(PROMPT) - 1 : -1]
            expected = rows.softmax(dim=-1).gather(1, torch.tensor(tokens).unsqueeze(1)).prod()
            assert abs(float(expected) - prob) < 1e-12


def test_a_cache_that_is_not_rolled_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant keeps what was rejected, and only counts it as gone."""

    def settle(self: RowCache, length: int) -> None:
        self.held = length

    with Float64Mode():
        model, ending = TransformersModel(model_of("gpt2")), Ending(4)
        plain = distribution(Autoregressive(model), ending)
        monkeypatch.setattr(RowCache, "settle", settle)
        found = distribution(PaSS(model, untrained(model_of("gpt2"), 2)), ending, merge=False)
        assert found.largest_deviation(plain) > 1e-4
