"""`pass-sampling ngram`: what it counts, what it says of it, and that it fits the model it was counted for."""

import math

import numpy as np
import torch
from transformers import AutoTokenizer

from console import read_strictly, run
from folders import contents
from pass_sampling.gpu import LookAhead, SamplingConfig, load_model
from pass_sampling.gpu.checkpoints import HELD_OUT, LOOKAHEAD, MODEL, NGRAM
from pass_sampling.gpu.cli.options import read_names
from pass_sampling.gpu.drafters import NgramModel
from pass_sampling.gpu.sampling import probs_from_logits
from pass_sampling.gpu.training.acceptance import drafter_acceptance
from pass_sampling.gpu.training.text import standard_library
from pass_sampling.gpu.training.tokens import encode_texts, evenly_spaced, vocabulary_digest

SAMPLINGS = [SamplingConfig(), SamplingConfig(0.8, 10)]


def count(box, output, capsys, *more):
    """Run `ngram --json` on the small model and return its object."""
    assert run("ngram", "--model", box.model, "--text", box.text, "--output", output, "--json", *more) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return read_strictly(printed.out)


def test_the_folder_is_what_the_object_says(box, tmp_path, capsys):
    before = contents(box.root)
    found = count(box, tmp_path / "ngram", capsys, "--min-count", 1)
    assert contents(box.root) == before
    ngram = NgramModel.load(tmp_path / "ngram")
    assert found["num_ngrams"] == [300, *(len(order.tokens) for order in ngram.orders)]
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "ngram").iterdir())
    assert {name: found[name] for name in ngram.training} == ngram.training
    assert (ngram.order, ngram.base_model, ngram.training["texts"]) == (4, "model", 12)
    tokenizer = AutoTokenizer.from_pretrained(str(box.model))
    ngram.check(load_model(box.model), vocabulary_digest(tokenizer))
    # The words of the text were drawn at random, so a word is known once it has begun, and every 16th can begin.
    text = tokenizer("for print index value list while pr").input_ids
    row = ngram.logits(torch.tensor([text]), None, torch.tensor([len(text)]), 1)[0]
    assert tokenizer.decode([int(row.argmax())]).strip() in "print"


def test_own_answers_are_counted_and_their_end_is_held_out(box, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pass_sampling.gpu.cli.training.OWN_LENGTH", 48)  # this model reads 96 tokens
    own = ["--self", "--self-tokens", 900, "--chat", "--prompts", box.prompts, "--min-count", 1]
    assert run("ngram", "--model", box.chat, "--output", tmp_path / "ngram", "--json", *own) == 0
    found = read_strictly(capsys.readouterr().out)
    assert (found["texts"], found["tokens"]) == (1, 810) and [path.name for path in tmp_path.iterdir()] == ["ngram"]
    NgramModel.load(tmp_path / "ngram").check(load_model(box.chat))


def test_listed_files_are_held_out(box, tmp_path, capsys):
    whole = count(box, tmp_path / "whole", capsys)
    listed = count(box, tmp_path / "listed", capsys, "--held-out-list", box.root / "list.txt")
    assert (whole["texts"], listed["texts"]) == (12, 11)
    tokens = AutoTokenizer.from_pretrained(str(box.model))((box.text / "0.py").read_text(encoding="utf-8")).input_ids
    assert listed["held_out"]["tokens"] == len(tokens) + 2  # with an end of text at both ends
    assert whole["tokens"] + whole["held_out"]["tokens"] == listed["tokens"] + listed["held_out"]["tokens"]


def test_acceptance_is_the_mean_over_the_places(box, tmp_path, capsys):
    count(box, tmp_path / "ngram", capsys)
    model, ngram = load_model(box.model, "float64"), NgramModel.load(tmp_path / "ngram")
    sequences = np.random.default_rng(0).integers(0, 300, (5, 20))
    found = drafter_acceptance(model, ngram, sequences, SAMPLINGS)
    for sampling, value in zip(SAMPLINGS, found, strict=True):
        total = 0.0
        for row in torch.from_numpy(sequences):
            target = probs_from_logits(model.forward(row[None])[0], sampling)
            for place in range(19):  # all of them: there are fewer than are looked at
                logits = ngram.logits(row[None], None, torch.tensor([place + 1]), 1)
                total += float(torch.minimum(target[place], probs_from_logits(logits, sampling)[0]).sum())
        assert math.isclose(value, total / (5 * 19), rel_tol=1e-9)


def test_the_one_bundled_is_small_and_belongs_to_the_model():
    assert sum(path.stat().st_size for path in NGRAM.iterdir()) < 1.8e6
    ngram, card = NgramModel.load(NGRAM), (MODEL.parent / "README.md").read_text(encoding="utf-8")
    ngram.check(load_model(MODEL), vocabulary_digest(AutoTokenizer.from_pretrained(str(MODEL))))
    for order, least in zip(ngram.orders, ngram.training["min_counts"], strict=True):
        assert f"{len(order.tokens):,}" in card and str(least) in card
    figures = ngram.training["held_out"]
    for setting in figures["acceptance"]:
        assert f"{setting['expected']:.3f}" in card


def test_the_one_bundled_is_accepted_more_often_than_vectors():
    library = standard_library()
    texts = [library[name] for name in read_names(HELD_OUT) if name in library]
    tokens = np.concatenate(encode_texts(AutoTokenizer.from_pretrained(str(MODEL)), texts, 0))
    ngram, sequences = NgramModel.load(NGRAM), evenly_spaced(tokens, 256, 24)
    found = drafter_acceptance(load_model(MODEL), ngram, sequences, SAMPLINGS)
    print("n-grams", found)
    for value, setting in zip(found, ngram.training["held_out"]["acceptance"], strict=True):
        assert abs(value - setting["expected"]) < 0.08  # another sample of the held-out text
    assert found[1] > 1.5 * LookAhead.load(LOOKAHEAD).training["held_out"]["acceptance"][0]
