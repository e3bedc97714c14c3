"""The n-gram model: its distribution by a slow definition, the same in both packages, and in every batch."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folders import as_numpy, both_packages, module
from models import PACKAGES, exact_target, package, table
from pass_sampling import reference
from pass_sampling.reference.exactness.distribution import output_distribution

PRINT = "0123456789abcdef" * 4
Shares = dict[tuple[int, ...], dict[int, float]]  # of the tokens after a context


@dataclasses.dataclass(frozen=True)
class Tables:
    """The same tables twice: as arrays, and as a dictionary for the slow definition."""

    unigram: np.ndarray
    orders: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    shares: Shares

    @property
    def vocab_size(self) -> int:
        return len(self.unigram)

    def model(self, name: str, **fields: Any) -> Any:
        """Return the model of a package that holds them."""
        home, array = module(name, "drafters.ngram"), np.asarray
        if name == "gpu":
            import torch

            array = torch.as_tensor
        orders = tuple(home.NgramOrder(*map(array, arrays)) for arrays in self.orders)
        return home.NgramModel(array(self.unigram), orders, **fields)


def random_tables(vocab_size: int, order: int, seed: int, density: float = 0.6) -> Tables:
    """Draw tables: contexts without an n-gram, n-grams without a share, shares that add up to nearly 1."""
    draw = np.random.default_rng(seed)
    contexts: list[tuple[int, ...]] = [(token,) for token in range(vocab_size)]
    orders, shares = [], {}
    for _ in range(order - 1):
        successors, tokens, codes, above = [], [], [], []
        for context in contexts:
            chosen = np.flatnonzero(draw.random(vocab_size) < density * draw.integers(0, 3) / 2)
            weights = draw.dirichlet(np.full(len(chosen), 0.5)) if len(chosen) else np.zeros(0)
            roots = np.floor(256 * np.sqrt(weights * draw.choice([0.3, 0.999]))) * (draw.random(len(chosen)) < 0.9)
            successors.append(len(chosen))
            tokens += chosen.tolist()
            codes += roots.tolist()
            above += [(*context, token) for token in chosen.tolist()]
            shares[context] = dict(zip(chosen.tolist(), (roots**2 / 65536).tolist(), strict=True))
        orders.append((np.array(successors), np.array(tokens, dtype=np.int64), np.array(codes, dtype=np.uint8)))
        contexts = above
    unigram = np.exp(draw.uniform(-5, 5, vocab_size)).astype(np.float32)
    return Tables(unigram, orders, shares)


@st.composite
def tables(draw: Any, most: int = 7) -> Tables:
    """Any tables over a small vocabulary."""
    vocab_size, order, seed = draw(st.integers(1, most)), draw(st.integers(1, 4)), draw(st.integers(0, 2**32))
    return random_tables(vocab_size, order, seed, draw(st.sampled_from([0.0, 0.6, 1.0])))


def slow_distribution(made: Tables, context: tuple[int, ...]) -> np.ndarray:
    """The definition: what the shares of a context leave goes to the context without its first token."""
    if not context:
        weights = made.unigram.astype(np.float64)
        return weights / weights.sum()
    shares, lower = made.shares.get(context, {}), slow_distribution(made, context[1:])
    left = 1.0 - sum(shares.values())
    return np.array([shares.get(token, 0.0) + left * lower[token] for token in range(made.vocab_size)])


def texts_of(made: Tables, seed: int, count: int = 12, length: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Draw texts of different lengths, side by side; what lies after a length is rubbish."""
    draw = np.random.default_rng(seed)
    tokens, lengths = draw.integers(0, made.vocab_size, (count, length)), draw.integers(1, length + 1, count)
    return np.where(np.arange(length) < lengths[:, None], tokens, -(10**12)), lengths


def logits_of(name: str, model: Any, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:  # [B, V]
    """Ask a model of either package about a batch of texts."""
    if name == "reference":
        return np.stack([model.logits(row[:n].tolist(), None) for row, n in zip(tokens, lengths, strict=True)])
    import torch

    return as_numpy(model.logits(torch.from_numpy(tokens), None, torch.from_numpy(lengths), 1))


@both_packages
@given(made=tables(), seed=st.integers(0, 2**32))
def test_the_distribution_is_that_of_the_slow_definition(package: str, made: Tables, seed: int) -> None:
    tokens, lengths = texts_of(made, seed)
    logits = logits_of(package, made.model(package), tokens, lengths)
    reach = len(made.orders)
    for row, text, length in zip(logits, tokens, lengths, strict=True):
        context = tuple(text[max(0, length - reach) : length].tolist()) if reach else ()
        assert np.isfinite(row).all()  # every token is possible
        assert abs(np.exp(row).sum() - 1.0) < 1e-13
        assert (
            np.abs(np.exp(row) - slow_distribution(made, context)).max() < 1e-14
        )  # some ten roundings of numbers up to 1


@pytest.mark.torch
@given(made=tables(), seed=st.integers(0, 2**32))
def test_both_packages_give_the_same_logits(made: Tables, seed: int) -> None:
    tokens, lengths = texts_of(made, seed)
    ours, theirs = (logits_of(name, made.model(name), tokens, lengths) for name in PACKAGES)
    # Probabilities are wrong by some ten roundings each, relatively, so their logarithms by as much, absolutely.
    assert np.abs(ours - theirs).max() < 1e-14 + 1e-15 * np.abs(ours).max()


@pytest.mark.torch
@given(made=tables(), seed=st.integers(0, 2**32))
def test_a_row_depends_neither_on_its_batch_mates_nor_on_what_lies_after_it(made: Tables, seed: int) -> None:
    model = made.model("gpu")
    tokens, lengths = texts_of(made, seed)
    batch = logits_of("gpu", model, tokens, lengths)
    for i in range(len(tokens)):
        alone = logits_of("gpu", model, tokens[i : i + 1], lengths[i : i + 1])
        assert np.array_equal(alone[0], batch[i])
    filled = np.where(tokens < 0, 10**12, tokens)
    order = np.random.default_rng(seed).permutation(len(tokens))
    assert np.array_equal(logits_of("gpu", model, filled[order], lengths[order]), batch[order])


@both_packages
def test_only_the_last_tokens_matter(package: str) -> None:
    made = random_tables(5, 4, seed=1, density=1.0)
    tokens, lengths = np.random.default_rng(2).integers(0, 5, (40, 8)), np.full(40, 8)
    ends = logits_of(package, made.model(package), tokens[:, -3:], lengths - 5)
    assert np.array_equal(ends, logits_of(package, made.model(package), tokens, lengths))
    assert len(np.unique(ends, axis=0)) > 10


@both_packages
def test_it_is_a_drafter_that_costs_nothing(package: str) -> None:
    model = random_tables(5, 3, seed=1).model(package)
    assert (model.vocab_size, model.order, model.name) == (5, 3, "3-gram")
    assert (model.passes_per_draft, model.max_position_embeddings, model.new_cache(100)) == (0, None, None)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_the_text_keeps_the_targets_distribution(name: str, rule: str) -> None:
    pkg = package(name)
    made, ending, sampling = random_tables(3, 3, seed=4), pkg.Ending(4, eos_token_ids=(2,)), pkg.SamplingConfig(0.8, 2)
    method = pkg.SpeculativeSampling(table(pkg), made.model(name), sampling, rule=rule, num_draft=2)
    plain = exact_target(table(reference), reference.SamplingConfig(0.8, 2), [0], reference.Ending(4, (2,)))
    assert output_distribution(method, [0], ending).largest_deviation(plain) < 1e-12


@pytest.mark.torch
def test_no_number_is_read_back_from_the_device() -> None:
    import torch
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    model = random_tables(6, 4, seed=3).model("gpu")
    index = model._index
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:  # a tensor without numbers: reading one fails
        fields = {each.name: fake.from_tensor(getattr(index, each.name)) for each in dataclasses.fields(index)}
        tokens, lengths = torch.zeros((3, 9), dtype=torch.int64), torch.full((3,), 5)
        assert dataclasses.replace(index, **fields).logits(tokens, lengths).shape == (3, 6)
        with pytest.raises(DataDependentOutputException):
            int(lengths.sum())


@pytest.mark.torch
def test_a_draft_takes_a_fraction_of_a_millisecond(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not asserted: python -m pytest -rP tests/drafters/test_ngram.py -k fraction."""
    import torch

    from pass_sampling.gpu.sampling import cell_edges, draw, probs_from_logits
    from pass_sampling.reference.config import SamplingConfig

    made, uniform = random_tables(256, 3, seed=0, density=0.1), torch.tensor([0.3], dtype=torch.float64)
    model, tokens, lengths = made.model("gpu"), torch.zeros((1, 512), dtype=torch.int64), torch.tensor([300])
    times = []
    for _ in range(200):
        start = time.perf_counter()
        probs = probs_from_logits(model.logits(tokens, None, lengths, 1), SamplingConfig(0.8, 10))
        draw(cell_edges(probs), uniform)
        times.append(time.perf_counter() - start)
    print(f"{1e6 * min(times):.0f} µs per draft with {len(model.orders[1].tokens)} n-grams of order 3")


# --- What it belongs to ---


def target(vocab_size: int = 5) -> Any:
    return SimpleNamespace(vocab_size=vocab_size, name="other")


@both_packages
def test_a_model_with_other_tokens_is_refused_by_name(package: str) -> None:
    model = random_tables(5, 2, seed=0).model(package, base_model="tiny", tokenizer=PRINT)
    model.check(target())
    model.check(target(), PRINT)
    with pytest.raises(ValueError) as error:
        model.check(target(7))
    assert str(error.value) == "the n-gram model has vocab_size 5, expected 7 as in the model 'other'"
    with pytest.raises(ValueError) as error:
        model.check(target(), "f" * 64)
    assert str(error.value) == (
        "the n-gram model was counted with the tokenizer of 'tiny' (0123456789ab), this is that of 'other' "
        "(ffffffffffff), expected the same; wrong tokens keep the text exact but make it slow, and "
        "dataclasses.replace(ngram, tokenizer=None) uses them all the same"
    )
    dataclasses.replace(model, tokenizer=None).check(target(), "f" * 64)


# --- What is no table ---


def bad_unigram(values: Any) -> Tables:
    return Tables(np.array(values, dtype=np.float64), [], {})


def bad_order(successors: list[int], tokens: list[int], codes: list[int], below: bool = False) -> Tables:
    orders = [tuple(np.array(each, dtype=np.int64) for each in (successors, tokens, codes))]
    return Tables(
        np.ones(3), [(np.array([1, 1, 0]), np.array([2, 0]), np.array([9, 9])), *orders] if below else orders, {}
    )


POSITIVE = "unigram: found something else, expected a finite positive number for each token"
BAD: list[tuple[Tables, str]] = [
    (bad_unigram([]), POSITIVE),
    (bad_unigram([[1.0]]), POSITIVE),
    (bad_unigram([1.0, 0.0]), POSITIVE),
    (bad_unigram([1.0, -1.0]), POSITIVE),
    (bad_unigram([1.0, np.nan]), POSITIVE),
    (bad_unigram([1.0, np.inf]), POSITIVE),
    (bad_unigram([1.0, 1e300]), POSITIVE),
    (Tables(np.ones(1), [(np.zeros(1), np.zeros(0), np.zeros(0))] * 4, {}), "orders: found 4, expected at most 3"),
    (
        bad_order([1, 0], [2], [9]),
        "order_2.num_successors: found 2 numbers with the sum 1, expected 3 of at least 0 with the sum 1, the number "
        "of tokens",
    ),
    (
        bad_order([1, 2, 0], [2, 0], [9, 9]),
        "order_2.num_successors: found 3 numbers with the sum 3, expected 3 of at least 0 with the sum 2, the number "
        "of tokens",
    ),
    (
        bad_order([-1, 1, 0], [], []),
        "order_2.num_successors: found 3 numbers with the sum 0, expected 3 of at least 0 with the sum 0, the number "
        "of tokens",
    ),
    (bad_order([1, 0, 1], [1, 2], [9]), "order_2.codes: found 1, expected 2, the number of tokens"),
    (bad_order([1, 0, 1], [1, 3], [9, 9]), "order_2.tokens: found 3, expected 0 to 2"),
    (bad_order([1, 0, 1], [-1, 1], [9, 9]), "order_2.tokens: found -1, expected 0 to 2"),
    (
        bad_order([2, 0, 1], [1, 1, 0], [9, 9, 9]),
        "order_2.tokens: found 1 after 1 in one context, expected them to grow",
    ),
    (
        bad_order([1, 0, 2], [1, 2, 0], [9, 9, 9]),
        "order_2.tokens: found 0 after 2 in one context, expected them to grow",
    ),
    (
        bad_order([2, 0, 0], [0, 1], [255, 23]),
        "order_2.codes: found shares of one context that add up to 1.0003, expected less than 1",
    ),
    (bad_order([1, 1], [2, 3], [9, 9], below=True), "order_3.tokens: found 3, expected 0 to 2"),
    (
        bad_order([1, 1, 0], [2, 1], [9, 9], below=True),
        "order_3.num_successors: found 3 numbers with the sum 2, expected 2 of at least 0 with the sum 2, the number "
        "of tokens",
    ),
]


@both_packages
@pytest.mark.parametrize(("made", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_arrays_that_make_no_tables_are_refused(package: str, made: Tables, message: str) -> None:
    with pytest.raises(ValueError) as error:
        made.model(package)
    assert str(error.value) == message


@both_packages
def test_shares_may_add_up_to_all_but_a_little(package: str) -> None:
    made = bad_order([2, 0, 0], [0, 1], [255, 22])  # 65509 of 65536
    distribution = np.exp(logits_of(package, made.model(package), np.array([[0]]), np.array([1])))[0]
    assert abs(distribution.sum() - 1) < 1e-15 and abs(distribution[2] - 27 / 65536 / 3) < 1e-18
