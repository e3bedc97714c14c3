"""What block drafts refuse: parts of another model, and lattices and paths that are too large; one sentence each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from console import run
from pass_sampling.gpu import LookAhead, NgramModel, load_model
from pass_sampling.gpu.lookahead.head import BlockHeads, SamplerHead

pytestmark = pytest.mark.torch

REFUSED = {
    "heads of another model": ("--lookahead {parts}/model", "were trained for the model 'another' (0000"),
    "of another width": ("--lookahead {parts}/width", "the look-ahead vectors have hidden_size 26, expected 24"),
    "of another vocabulary": ("--lookahead {parts}/vocabulary", "draft_vocab: found the token 300, expected 0 to 299"),
    "no block heads": ("--lookahead {parts}/rescorer", "found vectors without block heads, expected a folder that"),
    "wide lattice": ("--lattice 301", "width: found a lattice of 301 tokens, expected at most 300"),
    "many paths": ("--paths 10 --lattice 3", "num_paths: found 10, expected at most 9, as 2 drafts of 3"),
    "n-grams of another tokenizer": (
        "--refine ngram --ngram {parts}/ngram",
        "the n-gram model was counted with the tokenizer of 'another' (0000",
    ),
    "a rescorer of another model": (
        "--refine neural --rescorer {parts}/rescorer",
        "the look-ahead vectors have hidden_size 26, expected 24",
    ),
    "block heads as the rescorer": (
        "--refine neural --rescorer {parts}/heads",
        "--rescorer: found a folder without a sampler head, expected what train --head-alone made",
    ),
}


@pytest.fixture(scope="module")
def parts(box: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write block heads that suit the model, and parts that do not."""
    root, size = tmp_path_factory.mktemp("parts"), load_model(box.model).hidden_size

    def heads(hidden_size: int = size, **changes: Any) -> LookAhead:
        vectors = LookAhead.random(2, hidden_size, seed=0)
        return replace(vectors, **{"head": BlockHeads.random(hidden_size, 4, 2, seed=1)} | changes)

    another = {"base_model": "another", "fingerprint": "0" * 64}
    heads().save(root / "heads")
    heads(**another).save(root / "model")
    heads(size + 2).save(root / "width")
    heads(draft_vocab=torch.tensor([1, 300])).save(root / "vocabulary")
    alone = replace(SamplerHead.random(size + 2, 4, 2), uses_lookahead=False)
    heads(size + 2, head=alone).save(root / "rescorer")
    replace(NgramModel.load(box.ngram), base_model="another", tokenizer="0" * 64).save(root / "ngram")
    return root


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_a_block_is_refused_in_one_sentence(what: str, box: Any, parts: Path, capsys: Any) -> None:
    flags, message = REFUSED[what]
    method = "blockwise-paths" if "--paths" in flags else "blockwise"
    argv = ["--method", method, "--lookahead", parts / "heads", *flags.format(parts=parts).split()]
    assert run("generate", "--model", box.model, "--prompt", "def", *argv) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err, printed.err
