"""What is registered is found: by the suite, the coupling tests, the command line, the benchmark and the page."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from console import read_strictly, run
from coupled import assert_same, generations
from folders import module
from models import PACKAGES, package
from pass_sampling.reference.exactness import suite
from pass_sampling.reference.exactness.cases import configurations, methods_of

pytestmark = pytest.mark.torch
# But for tied rows of a transformer: behind a candidate that is accepted for sure, a residual is rounding alone.
CASES = [case for case in configurations() if not (case.shape and case.levels)]
PAIRS = methods_of(reference)


@pytest.mark.parametrize(("method", "rule"), PAIRS, ids=lambda name: name or "-")
def test_the_same_uniforms_give_the_same_texts_and_records_in_both_packages(method: str, rule: str | None) -> None:
    for case in CASES:
        for one, other in zip(*generations(case, method, rule), strict=True):
            assert_same(one, other)


def test_both_packages_register_the_same_methods_drafters_and_rules() -> None:
    assert methods_of(package("gpu")) == PAIRS


@dataclass(frozen=True, eq=False)
class Toy:
    """Drafts the token after the last one, or the one after that half as often."""

    vocab_size: int
    name = "toy"
    passes_per_draft = 0
    max_position_embeddings = None

    def new_cache(self, capacity: int, batch_size: int = 1) -> None:
        """Return None."""

    def row(self, last: int) -> Any:
        row = np.full(self.vocab_size, -np.inf)
        row[[(last + 1) % self.vocab_size, (last + 2) % self.vocab_size]] = 0.0, -np.log(2)
        return row


class ReferenceToy(Toy):
    """For one sequence."""

    def logits(self, tokens: Any, cache: Any) -> Any:
        """Return the logits of the next token."""
        return self.row(tokens[-1])


class PortToy(Toy):
    """For a batch."""

    def logits(self, tokens: Any, cache: Any, lengths: Any, max_pending: int) -> Any:
        """Return the logits of the next token of every row."""
        import torch

        last = tokens.gather(1, lengths.unsqueeze(1) - 1)[:, 0]
        return torch.stack([torch.from_numpy(self.row(int(token))) for token in last])

    def best(self, *asked: Any) -> Any:
        """Return the likeliest token of every row, and its logit."""
        return module("gpu", "sampling").likeliest(self.logits(*asked))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the drafter: one line per package."""
    monkeypatch.setitem(reference.drafters.DRAFTERS, "toy", ReferenceToy)
    monkeypatch.setitem(package("gpu").drafters.DRAFTERS, "toy", PortToy)
    return "toy"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_new_drafter_is_found_by_the_suite_and_is_exact(name: str, toy: str) -> None:
    rows = [pair for pair in methods_of(package(name)) if pair[0] == toy]
    assert rows == [("toy", "token"), ("toy", "block"), ("toy", "match")]
    for row in suite.exact_suite([package(name)], rows, CASES[:4]):
        assert row.largest_deviation < suite.EXACT and row.executions > 4


def test_a_new_drafter_is_found_by_the_command_line_and_the_benchmark(toy, box, capsys):
    model = ["--model", box.model, "--max-new-tokens", 12, "--json"]
    assert run("generate", *model, "--prompt", "def", "--method", toy, "--num-draft", 2, "--verify", "block") == 0
    found = read_strictly(capsys.readouterr().out)
    assert found["options"] == {"drafter": "toy", "num_draft": 2, "verify": "block"} and found["num_drafts"] > 0
    assert run("generate", *model, "--prompt", "def", "--method", toy, "--candidates", "2,1") == 0
    assert read_strictly(capsys.readouterr().out)["options"]["candidates"] == "2,1"
    assert run("bench", *model, "--methods", toy, "--quick", "--repeats", 1) == 0
    rows = read_strictly(capsys.readouterr().out)["rows"]
    assert [row["method"] for row in rows] == ["autoregressive", toy]
    assert run("plan", "--model", box.model, "--again", "--json") == 0
    considered = read_strictly(capsys.readouterr().out)["considered"]
    assert toy in [each["options"]["method"] for each in considered]
    assert run("generate", "--prompt", "def", "--method", "guess") == 2
    said = capsys.readouterr().err
    assert "--method: found 'guess', expected one of autoregressive, pass," in said and said.endswith(", toy\n")
