"""How often one of several candidates is accepted on the bundled model, exactly, at places of held-out text."""

import bisect
import inspect
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

import pass_sampling.gpu as port
from pass_sampling.gpu.bench.expectation import steps_after
from pass_sampling.gpu.bench.prompts import pieces, read_library
from pass_sampling.gpu.checkpoints import DRAFT_MODEL, FUSED, HELD_OUT, LOOKAHEAD, MODEL, NGRAM
from pass_sampling.gpu.cli.console import encode_prompt
from pass_sampling.gpu.cli.options import read_names
from pass_sampling.gpu.decode_options import written_candidates
from pass_sampling.gpu.training.text import standard_library
from pass_sampling.gpu.training.tokens import encode_texts, evenly_spaced, load_tokenizer
from pass_sampling.reference.methods.tree_rules import RULES
from pass_sampling.reference.theory import best_tree, candidate_acceptance, tree_tokens

SAMPLING = port.SamplingConfig(temperature=0.8, top_k=10)


@pytest.fixture(scope="module")
def windows() -> Any:
    library = standard_library()
    texts = [library[name] for name in read_names(HELD_OUT) if name in library]
    return torch.from_numpy(evenly_spaced(np.concatenate(encode_texts(load_tokenizer(MODEL), texts, 0)), 256, 16))


@torch.inference_mode()
def distributions(folder: Any, windows: Any) -> tuple[Any, Any]:
    """Return the distributions of model and drafter: at every sixteenth place, by vectors at 128 places of a file."""
    model, places = port.load_model(MODEL), torch.arange(15, windows.shape[1], 16)
    if folder == LOOKAHEAD:
        model = port.load_model(MODEL, dtype="float32")
        text = encode_prompt(load_tokenizer(MODEL), inspect.getsource(bisect))
        ends = np.linspace(64, len(text) - 2, 128).astype(int)
        embedded = model.embed([text[end - 64 : end + 1] for end in ends])
        vector = port.LookAhead.load(LOOKAHEAD).vectors[:1].expand(len(ends), 1, -1)
        inputs = embedded, torch.cat([embedded[:, :-1], vector.to(embedded.dtype)], dim=1)
        target_logits, draft_logits = (
            model.logits(model.hidden(each, model.new_cache(65, len(ends)))[:, -1]) for each in inputs
        )
    else:
        target_logits = torch.cat([model.forward(window[None])[0, places] for window in windows])
    if folder == NGRAM:
        lengths = (places + 1).repeat(len(windows))
        texts = windows.repeat_interleave(len(places), dim=0)
        draft_logits = port.NgramModel.load(NGRAM).logits(texts, None, lengths, windows.shape[1])
    elif folder == DRAFT_MODEL:
        draft = port.load_model(folder)
        draft_logits = torch.cat([draft.forward(window[None])[0, places] for window in windows])
    target, draft = (port.probs_from_logits(logits, SAMPLING).numpy() for logits in (target_logits, draft_logits))
    return target, draft


FOLDERS = {"the draft model": DRAFT_MODEL, "n-grams": NGRAM, "the first look-ahead vector": LOOKAHEAD}


@pytest.mark.parametrize("folder", FOLDERS)
def test_figures_on_the_bundled_model(folder: str, windows: Any) -> None:
    """Print how often one of 1 to 4 candidates is accepted: `python -m pytest -rP tests/drafters -k figures`."""
    pairs = []
    for target, draft in zip(*distributions(FOLDERS[folder], windows), strict=True):
        either = (target > 0) | (draft > 0)
        pairs.append((target[either], draft[either]))
    rates = {
        rule: [float(np.mean([candidate_acceptance(*pair, count, rule) for pair in pairs])) for count in (1, 2, 3, 4)]
        for rule in RULES
    }
    print(f"{folder}, {len(pairs)} places")
    for rule, found in rates.items():
        print(f"{rule:20}", *(f"{rate:.3f}" for rate in found))
        assert np.all(np.diff(found) > 0)
    shared = float(np.mean([np.minimum(*pair).sum() for pair in pairs]))
    assert [rates[rule][0] for rule in rates if rule != "match"] == pytest.approx([shared] * 3, abs=1e-12)
    assert rates["without-replacement"][1] > rates["k-seq"][1] > rates["with-replacement"][1] > shared


def rates_of(records: list[Any], depth: int) -> list[list[float]]:
    """Return how often the candidate of each rank was the one accepted, after so many accepted drafts."""
    accepted: Counter[tuple[int, int]] = Counter()
    reached: Counter[tuple[int, int]] = Counter()
    for record in records:
        depths: list[int] = []
        ranks: Counter[int] = Counter()
        path = {-1}  # the accepted drafts; candidates of one parent differ
        for place, (parent, token) in enumerate(zip(record.draft_parents, record.draft_tokens, strict=True)):
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
            key = depths[-1], ranks[parent]
            ranks[parent] += 1
            if parent in path:
                reached[key] += 1
                if depths[-1] < record.num_accepted and record.tokens[depths[-1]] == token:
                    accepted[key] += 1
                    path.add(place)
    return [
        [accepted[d, rank] / reached[d, rank] for rank in range(sum(key[0] == d for key in reached))]
        for d in range(depth)
    ]


@pytest.mark.slow
def test_the_best_trees_of_candidates_from_look_ahead_rows() -> None:
    """The chance of each rank at each depth, and the shapes that follow from it for some budgets of rows."""
    texts = list(read_library(read_names(HELD_OUT)).values())
    tokenizer = load_tokenizer(MODEL)
    prefixes = [encode_prompt(tokenizer, text)[:128] for text in pieces(texts, 200, 128)]
    model, vectors, shape = port.load_model(MODEL), port.LookAhead.load(FUSED), (6, 3, 2, 1, 1, 1)
    method = port.PaSSOneCallTree(model, vectors, SAMPLING, num_candidates=shape, groups=(0,))
    records = steps_after(method, prefixes, 4)
    rates = rates_of(records, len(shape))
    for depth, found in enumerate(rates):
        print(f"after {depth} drafts", *(f"{rate:.3f}" for rate in found))
        assert 0.5 < found[0] < 0.8 and all(rate < 0.25 for rate in found[1:])
    mean = float(np.mean([len(record.tokens) for record in records]))
    assert tree_tokens(rates, shape) == pytest.approx(mean, rel=0.1), "as if depths were independent"
    for num_drafts in (6, 10, 16, 24, 40):
        best = best_tree(rates, 7 * num_drafts, (6,) * 7)
        shape, rows = written_candidates(best), 7 * (num_drafts + 1)
        print(f"{num_drafts} drafts, {rows} rows: {shape}, {tree_tokens(rates, best):.2f}")
