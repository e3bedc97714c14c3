"""Exact output distributions of other libraries' samplers. `python tests/audit.py` prints the tables of docs/audit.md.

It takes some minutes on one core, needs the gpu extra, and looks for three more packages, which it leaves out if they
are not installed. docs/audit.md says how to run it.
"""

import contextlib
import copy
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.generation.utils import _speculative_sampling

from pass_sampling.gpu.exactness.torch_draws import torch_random
from pass_sampling.reference.exactness import NotExact, assert_exact
from pass_sampling.reference.exactness.program import program_distribution

sys.path.insert(0, str(Path(__file__).parent / "support"))
from hf_models import tiny

Logits = Callable[[tuple[int, ...]], torch.Tensor]  # of the next token after some tokens, [V]
Sampler = Callable[[Logits, Logits, int], tuple[int, ...]]  # target, draft and number of drafts -> a block of tokens

VOCAB, DRAFTS = 3, 2
SINGLE = 1e-6  # above what float32 rounds, below what a mistake does
NEAR_ONE = 1 - 2.0**-24  # the largest number that torch.rand returns in float32


# Verification functions


def drafted(target: Logits, draft: Logits, count: int) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Return drafts, their logits [K, V], and the target's logits before, between and after them [K+1, V]."""
    drafts: list[int] = []
    while len(drafts) < count:
        drafts.append(int(torch.multinomial(draft(tuple(drafts)).softmax(-1), 1)))
    prefixes = [tuple(drafts[:place]) for place in range(count + 1)]
    return (
        drafts,
        torch.stack([draft(each) for each in prefixes[:-1]]),
        torch.stack([target(each) for each in prefixes]),
    )


def of_transformers(target: Logits, draft: Logits, count: int) -> tuple[int, ...]:
    """`_speculative_sampling`, which assisted generation calls for candidates with logits."""
    drafts, draft_logits, target_logits = drafted(target, draft, count)
    tokens, _ = _speculative_sampling(torch.tensor([drafts]), draft_logits[None], count, target_logits[None])
    return tuple(tokens[0].tolist())


def of_flashspec(target: Logits, draft: Logits, count: int) -> tuple[int, ...]:
    """`flashspec.sampling.rejection.rejection_step`."""
    step = importlib.import_module("flashspec.sampling.rejection").rejection_step
    drafts, draft_logits, target_logits = drafted(target, draft, count)
    accepted, token = step(
        torch.tensor([drafts]), draft_logits.log_softmax(-1)[None], target_logits.log_softmax(-1)[None]
    )[0].tolist()
    return (*drafts[:accepted], token)


class Selector:
    """Plain sampling, as `economize` wants it."""

    generator = None

    def distribution(self, logits: torch.Tensor, history: Any = None) -> torch.Tensor:
        return logits.softmax(-1)

    def distributions(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1)

    def __call__(self, logits: torch.Tensor, history: Any = None) -> int:
        return int(torch.multinomial(logits.softmax(-1), 1))


def of_economize(target: Logits, draft: Logits, count: int) -> tuple[int, ...]:
    """`economize.decoding.verifiers.RejectionVerifier.verify`."""
    config = importlib.import_module("economize.decoding.config").DecodeConfig(verifier="rejection")
    verifier = importlib.import_module("economize.decoding.verifiers").RejectionVerifier(config)
    drafts, draft_logits, target_logits = drafted(target, draft, count)
    history = torch.tensor([0, *drafts])
    accepted, token = verifier.verify(target_logits, drafts, draft_logits.softmax(-1), Selector(), history, 1)
    return (*drafts[:accepted], token)


def of_seqspecdecod(name: str) -> Sampler:
    """Return a step of `seqspecdecod`, which draws its drafts itself; the text begins with a token 0."""

    def sampler(target: Logits, draft: Logits, count: int) -> tuple[int, ...]:
        step = getattr(importlib.import_module(f"seqspecdecod.{name[:-5].replace('speculative', 'sd')}"), name)

        def model(logits: Logits) -> Callable[[torch.Tensor], Any]:
            def run(ids: torch.Tensor) -> Any:
                tokens = tuple(ids[0, 1:].tolist())
                return SimpleNamespace(
                    logits=torch.stack([logits(tokens[:place]) for place in range(len(tokens) + 1)])[None]
                )

            return run

        ids = step(model(draft), model(target), torch.tensor([[0]]), count, 1.0, 1.0)[0]
        return tuple(ids[0, 1:].tolist())

    return sampler


SAMPLERS: dict[tuple[str, str], Sampler] = {
    ("transformers", "_speculative_sampling"): of_transformers,
    ("flashspec", "rejection_step"): of_flashspec,
    ("economize", "RejectionVerifier.verify"): of_economize,
    ("sequential-speculative-decoding", "standard_speculative_step"): of_seqspecdecod("standard_speculative_step"),
    ("sequential-speculative-decoding", "naive_hsd_step"): of_seqspecdecod("naive_hsd_step"),
    ("sequential-speculative-decoding", "capped_hsd_step"): of_seqspecdecod("capped_hsd_step"),
}


def table(seed: int) -> Logits:
    """Return logits that differ after every prefix."""

    def logits(tokens: tuple[int, ...]) -> torch.Tensor:
        place = seed + sum((token + 1) * 4**position for position, token in enumerate(tokens))
        return torch.sin(torch.arange(1, VOCAB + 1, dtype=torch.float64) * (place * 0.7 + 1.0)) * 1.5

    return logits


def verdict(sampler: Sampler, count: int) -> str:
    """Return what the enumeration of a sampler finds."""
    target, draft = table(0), table(100)

    def program() -> tuple[int, ...]:
        return sampler(target, draft, count)

    message = ""
    for tolerance in (1e-12, SINGLE):
        try:
            found = assert_exact(program, lambda tokens: target(tokens).softmax(-1), [torch_random], tolerance)
            return f"exact to {str(tolerance).replace('e-0', 'e-')} ({found.executions} executions)"
        except NotExact as failure:
            message = str(failure).splitlines()[0].partition(": ")[2]
        except (ValueError, RuntimeError, IndexError) as error:
            return f"not run: {error}"
    return message


@contextlib.contextmanager
def uniforms(number: float) -> Iterator[None]:
    """Let torch.rand and rand_like return one number everywhere; draws from distributions stay as they are."""

    def rand(*shape: Any, generator: Any = None, device: Any = None, dtype: Any = None) -> torch.Tensor:
        return torch.full(shape[0] if shape and not isinstance(shape[0], int) else shape, number, dtype=dtype)

    with patch("torch.rand", rand), patch("torch.rand_like", lambda like: torch.full_like(like, number)):
        yield


def at_zero(sampler: Sampler) -> str:
    """Return what becomes of a draft that the target never draws, at a uniform of 0."""
    impossible = torch.tensor([-torch.inf, 0.0, 0.0])
    with uniforms(0.0):
        block = sampler(lambda tokens: impossible, lambda tokens: torch.tensor([0.0, -torch.inf, -torch.inf]), 1)
    return "accepted" if block[0] == 0 else "rejected"


def without_residual(sampler: Sampler) -> str:
    """Return how often verification of distributions one rounding apart raises an error, at a uniform near 1."""
    errors, pairs, last = 0, 2000, ""
    torch.manual_seed(0)
    for _ in range(pairs):
        row = torch.randn(VOCAB)
        near = row.clone()
        near[0] = torch.nextafter(near[0], torch.tensor(-torch.inf))
        try:
            with uniforms(NEAR_ONE):
                sampler(lambda tokens, near=near: near, lambda tokens, row=row: row, 1)
        except RuntimeError as error:
            errors, last = errors + 1, str(error)
    return f"{errors} of {pairs} raise RuntimeError: {last}" if errors else f"{pairs} of {pairs} pass"


# Assisted generation of transformers

SIZES: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
CANDIDATES = GenerationConfig(
    pad_token_id=0, num_assistant_tokens=2, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
)
FILTERED = {"top_k": 2, "temperature": 0.7}


def enlarged(model: Any, scale: float) -> Any:
    """Scale the weights of a model, whose distributions would be nearly flat."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model.eval()


def llama(vocab_size: int = VOCAB, layers: int = 2, scale: float = 6.0) -> Any:
    return tiny("llama", torch.float32, scale, **SIZES | {"vocab_size": vocab_size, "num_hidden_layers": layers})


def tokenizer(vocab: dict[str, int]) -> Any:
    made = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def other_vocabulary(in_order: bool) -> tuple[Any, dict[str, Any]]:
    """An assistant with one token more, whose tokenizer lists its vocabulary by id or backwards."""
    words = {"c": 0, "a": 1, "b": 2, "d": 3}
    assistant = tokenizer(words)
    if in_order:
        print(f"A fast tokenizer with the tokens {words} lists them as {list(assistant.get_vocab())}.", file=sys.stderr)
    listed = sorted(words.items(), key=lambda word: word[1] if in_order else -word[1])
    assistant.get_vocab = lambda: dict(listed)
    options = {"tokenizer": tokenizer({"a": 0, "b": 1, "c": 2}), "assistant_tokenizer": assistant}
    return llama(), {"assistant_model": llama(4, 1, 4.0), **options}


def smaller_vocabulary() -> tuple[Any, dict[str, Any]]:
    """An assistant all of whose tokens the target has, too."""
    options = {"tokenizer": tokenizer({"a": 0, "b": 1, "c": 2}), "assistant_tokenizer": tokenizer({"a": 0, "b": 1})}
    return llama(), {"assistant_model": llama(2, 1, 4.0), **options}


def next_token_layers() -> tuple[Any, dict[str, Any]]:
    """A model with a layer for multi-token prediction, whose weights are not read from a checkpoint but random."""
    from transformers.modeling_layers import MtpModel

    main = tiny("deepseek_v3", torch.float32, **SIZES, num_nextn_predict_layers=1)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(1)
        made = MtpModel(main, 1).eval()
        for parameter in made.layers.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    MtpModel.from_pretrained = classmethod(lambda cls, *arguments, **options: made)  # type: ignore[method-assign]
    return main, {"use_mtp": True}


def block_diffusion() -> tuple[Any, dict[str, Any]]:
    """A drafter that predicts a block from the target's hidden states."""
    from transformers import MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "sliding_window": 16}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "block_size": 3, "mask_token_id": 0}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        drafter = MuseGlimmerAssistantModel(MuseGlimmerAssistantConfig(**sizes, target_layer_ids=[0, 1]))
    return llama(), {"assistant_model": enlarged(drafter, 6.0), "speculation_type": "dflash"}


def shared_keys() -> tuple[Any, dict[str, Any]]:
    """Gemma 4 with its assistant, all of whose layers use the target's keys and values."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4TextConfig
    from transformers.models.gemma4_assistant.configuration_gemma4_assistant import Gemma4AssistantConfig
    from transformers.models.gemma4_assistant.modeling_gemma4_assistant import Gemma4AssistantForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"head_dim": 8, "global_head_dim": 8, "max_position_embeddings": 64, "sliding_window": 16}
    sizes |= {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    kinds = ["sliding_attention", "full_attention"]

    def text(repeats: int, width: int) -> Any:
        per_layer = {"vocab_size_per_layer_input": VOCAB if width else 0, "hidden_size_per_layer_input": width}
        layers = {"num_hidden_layers": 2 * repeats, "num_kv_shared_layers": 2, "layer_types": kinds * repeats}
        return Gemma4TextConfig(**sizes, **per_layer, **layers)

    def assistant() -> Any:
        return Gemma4AssistantForCausalLM(Gemma4AssistantConfig(text_config=text(1, 0), backbone_hidden_size=16))

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        main = Gemma4ForConditionalGeneration(
            Gemma4Config(text_config=text(2, 8), vision_config=None, audio_config=None)
        )
        try:
            drafter = assistant()
        except ValueError as error:
            print(f"Gemma4AssistantForCausalLM: {error}. This script sets its layers to reuse keys.", file=sys.stderr)
            with patch.object(Gemma4TextConfig, "kv_sharing_modes", ["reuse"] * 2):
                drafter = assistant()
    return enlarged(main, 6.0), {"assistant_model": enlarged(drafter, 3.0)}


GENERATORS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "AssistedCandidateGenerator": lambda: (llama(), {"assistant_model": llama(layers=1, scale=4.0)}),
    "EarlyExitCandidateGenerator": lambda: (llama(), {"assistant_early_exit": 1}),
    "PromptLookupCandidateGenerator": lambda: (llama(), {"prompt_lookup_num_tokens": 2}),
    "UniversalSpeculativeDecodingGenerator, vocabulary listed by id": lambda: other_vocabulary(True),
    "UniversalSpeculativeDecodingGenerator, listed backwards": lambda: other_vocabulary(False),
    "UniversalSpeculativeDecodingGenerator, fewer tokens": smaller_vocabulary,
    "MTPCandidateGenerator": next_token_layers,
    "DFlashTokenCandidateGenerator": block_diffusion,
    "SinglePositionMultiTokenCandidateGenerator": shared_keys,
}


def generation(main: Any, options: dict[str, Any]) -> Callable[[], tuple[int, ...]]:
    """Return a program that writes three tokens by `generate`, from the same state each time."""
    prompt = torch.tensor([[1, 2, 0]])

    def program() -> tuple[int, ...]:
        main.generation_config = GenerationConfig(pad_token_id=0)
        if "assistant_model" in options:
            options["assistant_model"].generation_config = copy.deepcopy(CANDIDATES)
        settings = {"do_sample": True, "max_new_tokens": 3, "attention_mask": torch.ones_like(prompt)}
        with torch.no_grad():
            return tuple(main.generate(prompt, **settings, **options)[0, prompt.shape[1] :].tolist())

    return program


def assisted(main: Any, options: dict[str, Any], filters: dict[str, Any]) -> str:
    """Return how far assisted generation is from the same model's plain sampling."""
    try:
        generation(main, options | filters)()  # what is built at the first call may draw its first weights
        plain = program_distribution(generation(main, filters), [torch_random])
        found = program_distribution(generation(main, options | filters), [torch_random])
    except (AttributeError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    distance = found.total_variation(plain)
    return "exact to 1e-6" if distance <= SINGLE else f"total variation {distance:.3f}"


def function_row(package: str, name: str, sampler: Sampler) -> str:
    """Return the row of a verification function."""
    try:
        label = f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"| {package} | `{name}` | not installed | - | - |"
    edges = ["-", "-"] if "hsd" in name else [at_zero(sampler), without_residual(sampler)]
    return f"| {label} | `{name}` | {verdict(sampler, DRAFTS)} | {' | '.join(edges)} |"


def generator_row(name: str, build: Callable[[], tuple[Any, dict[str, Any]]]) -> str:
    """Return the row of a candidate generator."""
    model, options = build()
    kind, _, variant = name.partition(", ")
    cells = [assisted(model, options, filters) for filters in ({}, FILTERED)]
    return f"| `{kind}`{', ' if variant else ''}{variant} | {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    print("| package | function | output distribution | a draft of probability 0 at u = 0 | no residual, u near 1 |")
    print("|---|---|---|---|---|")
    for (package, function), sampler in SAMPLERS.items():
        print(function_row(package, function, sampler), flush=True)
    print(f"\n| candidate generator of transformers {transformers.__version__} | do_sample | with top_k=2 |")
    print("|---|---|---|")
    for name, build in GENERATORS.items():
        print(generator_row(name, build), flush=True)


if __name__ == "__main__":
    main()
