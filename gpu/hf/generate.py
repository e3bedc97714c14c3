"""PaSS in transformers' `generate`: `model.generate(**inputs, custom_generate=pass_generate, lookahead=folder)`.

The steps are this package's own, over any causal model whose cache can be rolled back. The model's own logits
processors and stopping criteria are asked about every prefix, drafts included: one row at a time, with the padding in
front of it, in a batch in which every row is that one, as some know rows by their place.

Glossary of shapes: B rows, T tokens of a row, padding included, T' tokens with the new ones.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DynamicCache,
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from pass_sampling.reference.config import SamplingConfig, check_context, check_integer
from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Generation, Record

from ..lookahead.vectors import LookAhead
from ..methods import Method, PaSS, PaSSOneCall
from ..sampling import Processor
from ..training.train import first_vectors
from .model import TransformersModel
from .model_checks import check_model, check_rope
from .rows import RowCache, RowCaches

IGNORED = {"logits_to_keep", "use_cache", "attention_mask", "position_ids", "past_key_values", "cache_position"}
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
STATEFUL = (  # they remember what they were asked, or run another model
    "SynthIDTextWatermarkLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
)


@dataclass
class PassOutput(GenerateDecoderOnlyOutput):
    """The output of `generate` with `return_dict_in_generate`, and the record of every row."""

    generations: tuple[Generation, ...] | None = None


def generate_with_pass(
    model: Any,
    inputs: Tensor | None = None,  # [B, T]
    lookahead: LookAhead | str | os.PathLike[str] | None = None,
    streamer: Any = None,
    stop_strings: str | list[str] | None = None,
    tokenizer: Any = None,
    **named: Any,
) -> Any:
    """Call `model.generate` with `pass_generate`, and hand on what it would lose: the streamer, and stop strings.

    Everything else is as in `generate`; see `pass_generate` for `fused` and `num_lookahead`. An assistant raises
    ValueError, and stop strings without a tokenizer.
    """
    if named.get("assistant_model") is not None:
        raise ValueError("assistant_model: found one, expected none: the model drafts for itself")
    for config in (named.get("generation_config"), model.generation_config):
        if stop_strings is None and config is not None and config.stop_strings is not None:
            stop_strings = config.stop_strings
            named["stop_strings"] = None  # `generate` would look for them itself, without the tokenizer
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("tokenizer: found None with stop_strings, expected the model's tokenizer")
        given = named.pop("stopping_criteria", None) or []
        named["stopping_criteria"] = StoppingCriteriaList([*given, StopStringCriteria(tokenizer, stop_strings)])
    if streamer is not None:  # `generate` shows it the prompt, and nothing else
        named |= {"custom_generate": partial(pass_generate, streamer=streamer), "streamer": streamer}
    return model.generate(inputs, **{"custom_generate": pass_generate, "lookahead": lookahead} | named)


@torch.no_grad()
def pass_generate(
    model: Any,
    input_ids: Tensor,  # [B, T]
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    lookahead: LookAhead | str | os.PathLike[str] | None = None,
    fused: bool | None = None,
    num_lookahead: int | None = None,
    streamer: Any = None,
    **model_kwargs: Any,
) -> Any:
    """Decode with look-ahead vectors; what `generate` calls as `custom_generate`.

    Rows of a batch are written one after another, each alone: with no padding, and no row's text depends on the others.

    Args:
        model: a causal model of transformers.
        input_ids: rows of tokens, padded in front.
        logits_processor: pure functions of a prefix, applied after every one.
        stopping_criteria: asked of every prefix.
        generation_config: as `generate` has completed it, like the `model_kwargs`.
        lookahead: vectors, or the folder that keeps them, or as a string its name on the Hub.
        fused: one call per step (`PaSSOneCall`) instead of two (`PaSS`); default: as the vectors were trained.
        num_lookahead: how many of the vectors to use; default: all.
        streamer: given the new tokens; `generate` itself does not pass it on, see `generate_with_pass`.

    Raise ValueError for what would not be exact, and for vectors of another model.
    """
    check_model(model)
    _check_generation(generation_config, logits_processor or [])
    num_padding = _paddings(input_ids, model_kwargs)
    cache = model_kwargs.get("past_key_values")  # `generate` has made an empty one, if it was given none
    if cache is not None and (type(cache) is not DynamicCache or cache.offloading or cache.get_seq_length()):
        given = f"{type(cache).__name__} of {cache.get_seq_length()} positions"
        raise ValueError(f"past_key_values: found a {given}, expected an empty DynamicCache on the device, or none")
    if streamer is not None and len(input_ids) > 1:
        raise ValueError(f"streamer: found one with {len(input_ids)} rows, expected it with one")
    longest = generation_config.max_length
    endings = [ending_of(stopping_criteria or [], input_ids, place, longest) for place in range(len(input_ids))]
    found = getattr(generation_config, "_pad_token_tensor", None)  # what `generate` has found to pad with
    padding_token = generation_config.pad_token_id if found is None else int(found)
    if padding_token is None and len(input_ids) > 1 and endings[0].criterion is not None:
        raise ValueError("pad_token_id: found None with rows that may end apart, expected a token")

    adapted = TransformersModel(model)
    vectors = _vectors(adapted, lookahead)
    # Temperature and the like are among the processors.
    sampling = SamplingConfig() if generation_config.do_sample else SamplingConfig(temperature=0.0)
    kind = PaSSOneCall if fused or (fused is None and vectors.head is not None) else PaSS
    if kind is PaSSOneCall:
        adapted.require_masks()
    method: Any = kind(adapted, vectors, sampling, num_lookahead=num_lookahead)
    prompts = [row[padding:].tolist() for row, padding in zip(input_ids, num_padding, strict=True)]
    for prompt, ending in zip(prompts, endings, strict=True):
        check_context(len(prompt), ending.max_new_tokens, adapted.max_position_embeddings)
        beyond = len(method.vectors) if kind is PaSSOneCall else 0
        check_rope(adapted.text_config, len(prompt), ending.max_new_tokens, beyond)

    texts = []
    for place, (prompt, padding, ending) in enumerate(zip(prompts, num_padding, endings, strict=True)):
        hook = processor_hook(logits_processor or [], input_ids, place, padding, adapted.dtype)
        cache = DynamicCache(config=adapted.text_config)
        texts.append(_write(replace(method, processor=hook), prompt, ending, cache, streamer))
    if streamer is not None:
        streamer.end()

    rows = [input_ids.new_tensor(text.tokens) for text in texts]
    new = pad_sequence(rows, batch_first=True, padding_value=padding_token or 0)
    sequences = torch.cat([input_ids, new], dim=1)
    if not generation_config.return_dict_in_generate:
        return sequences
    return PassOutput(sequences=sequences, generations=tuple(texts))  # type: ignore[arg-type]


def _write(method: Method, prompt: Sequence[int], ending: Ending, cache: Any, streamer: Any) -> Generation:
    """Continue a prompt with an empty cache, which may keep less than `TransformersModel.new_cache`.

    The uniforms are drawn from PyTorch's default generator, in float64; greedy decoding draws none.
    """
    state = method.start(prompt, ending)
    caches = RowCaches([RowCache(cache)], state.cache.lengths, state.cache.capacity)
    state = replace(state, cache=caches, cached=caches.lengths)
    records: list[Record] = []
    while not bool(state.ended):
        uniforms = torch.full((1, method.num_uniforms), 0.5, dtype=torch.float64)
        uniforms = torch.rand_like(uniforms) if method.sampling.temperature > 0 else uniforms
        state, batch = method.step(state, uniforms.to(method.model.device))
        state.raise_fault()
        records += batch.rows()
        for token in records[-1].tokens if streamer is not None else ():
            streamer.put(torch.tensor([token]))
    tokens = tuple(token for record in records for token in record.tokens)
    return Generation(tuple(prompt), tokens, ending.reason(tokens) or "length", tuple(records))


def untrained_lookahead(model: Any, num_lookahead: int, seed: int = 0) -> LookAhead:
    """Return what training starts from, for any model: the mean input vector, with noise of a tenth of their spread."""
    check_integer("num_lookahead", num_lookahead, 0, 2**16)
    check_integer("seed", seed, 0, 2**63 - 1)
    with torch.no_grad():
        return LookAhead(first_vectors(TransformersModel(model), num_lookahead, seed).cpu())


def _vectors(model: TransformersModel, lookahead: LookAhead | str | os.PathLike[str] | None) -> LookAhead:
    """Return the vectors if the model can use them; warn if they may be another model's."""
    if lookahead is None:
        raise ValueError("lookahead: found None, expected a LookAhead, or the folder of one")
    if not isinstance(lookahead, LookAhead):
        lookahead = LookAhead.load(lookahead)
    if lookahead.adapter is not None:
        raise ValueError("lookahead: found vectors with an adapter, expected none for a model of transformers")
    vocab_size = lookahead.base_shapes.get("vocab_size", model.vocab_size)
    if vocab_size != model.vocab_size:
        raise ValueError(f"lookahead: found vectors for {vocab_size} tokens, expected {model.vocab_size}, the model's")
    if lookahead.fingerprint not in (None, model.fingerprint):
        known = f"trained for {lookahead.base_model!r}, and that {model.name!r} is the same cannot be seen"
        warnings.warn(f"lookahead: these vectors were {known}; another's are exact, and slow", stacklevel=4)
    return replace(lookahead, fingerprint=None)


# --- Arguments of `generate`: what is refused before any pass, and hooks for each row ---


def _check_generation(config: Any, processors: Sequence[Any]) -> None:
    """Raise ValueError for settings of `generate` that would not be exact, or need outputs that drafts do not have."""
    mode = config.get_generation_mode().value
    if (config.num_beams or 1) > 1:
        raise ValueError(f"num_beams: found {config.num_beams}, expected 1")
    if mode not in ("greedy_search", "sample"):
        raise ValueError(f"generation_config: found settings for {mode}, expected greedy decoding or sampling")
    if config.guidance_scale not in (None, 1, 1.0):
        raise ValueError(f"guidance_scale: found {config.guidance_scale}, expected None")
    if config.use_cache is False:
        raise ValueError("use_cache: found False, expected True: rejected drafts are rolled back in a cache")
    for name in (*OUTPUTS, "is_assistant"):
        if getattr(config, name, None):
            raise ValueError(f"{name}: found True, expected False: rows of drafts would count")
    for processor in processors:
        if (name := type(processor).__name__) in STATEFUL:
            raise ValueError(f"logits_processor: found {name}, expected a function of the prefix and its logits alone")


def _paddings(input_ids: Tensor, named: dict[str, Any]) -> list[int]:  # input_ids [B, T]
    """Return how many tokens of padding are in front of each row.

    Raise ValueError for padding anywhere else, for other positions than those that count the tokens, and for an
    argument that the model's forward would be given in addition to the tokens.
    """
    for name, value in named.items():
        if name == "token_type_ids" and isinstance(value, Tensor) and not bool(value.any()):
            continue  # of a tokenizer that marks one text with zeros
        if name not in IGNORED and value is not None and value is not False:
            raise ValueError(f"{name}: found a {type(value).__name__}, expected a prompt of tokens alone")
    mask, positions = named.get("attention_mask"), named.get("position_ids")
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids: found shape {list(input_ids.shape)}, expected rows of at least one token")
    seen = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if seen.shape != input_ids.shape:
        raise ValueError(f"attention_mask: found shape {list(seen.shape)}, expected {list(input_ids.shape)}")
    if bool((seen[:, :-1] & ~seen[:, 1:]).any()) or not bool(seen[:, -1].all()):
        raise ValueError("attention_mask: found zeros after a token, expected padding in front of the text alone")
    padded: list[int] = (~seen).sum(dim=1).tolist()
    for row, padding in zip([] if positions is None else positions, padded, strict=False):
        expected = torch.arange(input_ids.shape[1] - padding, device=row.device)
        if row.ndim != 1 or not torch.equal(row[-len(expected) :], expected[-len(row) :]):
            raise ValueError("position_ids: found positions of another kind, expected those that count the tokens")
    return padded


def processor_hook(
    processors: Sequence[Any],
    input_ids: Tensor,  # [B, T]
    place: int,
    num_padding: int,
    dtype: torch.dtype,
) -> Processor | None:
    """Return the processors as one hook for a row of the batch, given float32 logits as in `generate`, or float64."""
    if not processors:
        return None
    every: Any = LogitsProcessorList(processors)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    num_prompt = input_ids.shape[1] - num_padding

    def process(prefix: tuple[int, ...], logits: Tensor) -> Tensor:
        rows = _rows_of(input_ids, place, prefix[num_prompt:])
        processed: Tensor = every(rows, logits.to(rows.device, wanted).repeat(len(rows), 1))[place]
        return processed.to(logits.device)

    return process


def ending_of(
    criteria: Sequence[Any],
    input_ids: Tensor,  # [B, T]
    place: int,
    max_length: int,
) -> Ending:
    """Return where the text of a row ends: at a length, at tokens, or at a prefix that another criterion ends."""
    eos: set[int] = set()
    others: Any = StoppingCriteriaList()
    for criterion in criteria:
        if type(criterion) is MaxLengthCriteria:
            max_length = min(max_length, criterion.max_length)
        elif type(criterion) is EosTokenCriteria:
            eos |= set(criterion.eos_token_id.flatten().tolist())
        else:
            others.append(criterion)

    def ends(new_tokens: Sequence[int]) -> bool:
        return bool(others(_rows_of(input_ids, place, new_tokens), None)[place])

    return Ending(max_length - input_ids.shape[1], sorted(eos), criterion=ends if others else None)


def _rows_of(input_ids: Tensor, place: int, new_tokens: Sequence[int]) -> Tensor:  # [B, T']
    """Return a row of the batch with new tokens after it, as often as there are rows."""
    new = torch.tensor(new_tokens, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids[place], new]).repeat(len(input_ids), 1)
