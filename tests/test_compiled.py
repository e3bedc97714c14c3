"""A compiled step: the law of the target, the texts of the step as it is, and nothing lost where it cannot be had."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from console import read_strictly, run
from models import exact_target, package, transformer
from pass_sampling.gpu.compiling.compilers import has_compiler
from pass_sampling.reference.law import output_law
from test_engine import KINDS, LONG, PROMPTS, method_of, same_records

pytestmark = pytest.mark.torch
compiles = pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler, and there is none")


def each_but(quick: str) -> list[Any]:
    """A step takes some ten seconds to compile: all but one are slow tests."""
    return [pytest.param(kind, marks=() if kind == quick else pytest.mark.slow) for kind in KINDS]


def compiled(method: Any, **settings: Any) -> tuple[Any, list[str]]:
    """The method, compiled, with room for short texts; and what was compiled, not found among what is kept."""
    from pass_sampling.gpu.compiled import Compiled

    made: list[str] = []
    return Compiled(method, **{"least_sight": 32, "report": made.append} | settings), made


def kind_of(kind: str, seed: int = 4) -> Any:
    pkg = package("gpu")
    return method_of(kind, pkg, transformer(pkg, seed))


@compiles
@pytest.mark.parametrize("kind", each_but("block"))
def test_a_compiled_text_is_that_of_the_step_as_it_is(kind: str) -> None:
    """In float64, with all recorded probabilities; a package is kept, and found by the next."""
    pkg = package("gpu")
    method = kind_of(kind)
    native, made = compiled(method)
    for number, prompt in enumerate(PROMPTS):
        found = pkg.generate(native, prompt, 9, (2,), seed=3, request=number)
        alone = pkg.generate(method, prompt, 9, (2,), seed=3, request=number)
        same_records(found, alone)
        assert found.num_forward_passes == alone.num_forward_passes + (len(prompt) > 1), "the prompt's own pass counts"
    assert None not in native.code.values() and len(native.code) == len(made) > 0
    again, made_again = compiled(kind_of(kind))
    same_records(pkg.generate(again, (1, 0), 9, (2,)), pkg.generate(method, (1, 0), 9, (2,)))
    other, made_of_another = compiled(kind_of(kind, 6)) if kind == "plain" else (None, [])
    assert None not in again.code.values() and not made_again
    if other is not None:  # other weights are another package
        same_records(pkg.generate(other, (1, 0), 9, (2,)), pkg.generate(kind_of(kind, 6), (1, 0), 9, (2,)))
        assert made_of_another


@compiles
@pytest.mark.parametrize("kind", each_but("fused head"))
def test_the_law_of_a_compiled_step_is_the_targets(kind: str) -> None:
    pkg = package("gpu")
    native, _ = compiled(kind_of(kind))
    law = output_law(native, (1, 0), pkg.Ending(4, (2,)))
    sampling, ending = reference.SamplingConfig(temperature=0.9), reference.Ending(4, (2,))
    assert law.largest_deviation(exact_target(transformer(reference, 4), sampling, (1, 0), ending)) <= 1e-12
    assert None not in native.code.values() and native.code


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "draft model"])
def test_longer_texts_and_more_rows_are_compiled_for_themselves(kind: str) -> None:
    """The text of a request does not depend on its neighbours, nor on where one code takes over from another."""
    pkg = package("gpu")
    method = kind_of(kind)
    native, _ = compiled(method, least_sight=8)
    found = pkg.generate_batch(native, LONG[:3], 12, (), seed=3)
    for number, prompt in enumerate(LONG[:3]):
        same_records(found[number], pkg.generate(method, prompt, 12, (), seed=3, request=number))
    assert len({key[0] for key in native.code}) > 1 and None not in native.code.values()
    engine = pkg.Engine(native, pkg.Ending(9, (2,)), 2, longest_prompt=20, seed=3)
    for number, text in engine.run([pkg.Request(number, prompt) for number, prompt in enumerate(LONG)]):
        same_records(text, pkg.generate(method, LONG[number], 9, (2,), seed=3, request=number))
    assert None not in native.code.values()


def as_written(graph: Any, examples: list[Any], begins: Any) -> Any:
    """In place of a package: the operations as they are written down, which refuse what a package would misread."""

    def call(*inputs: Any) -> Any:
        for given, example in zip(inputs, examples, strict=True):
            assert (given.shape, given.dtype) == (example.shape, example.dtype) and given.is_contiguous()
        return graph(*inputs)

    return call


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are written down, and run as written."""
    monkeypatch.setattr("pass_sampling.gpu.compiled.has_compiler", lambda: True)
    monkeypatch.setattr("pass_sampling.gpu.compiled.compiled_package", as_written)


def unfit(reason: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """A method that cannot be compiled, and what else a text of it takes."""
    pkg = package("gpu")
    settings: dict[str, Any] = {}
    method = kind_of("plain", 8)
    if reason != "no C++ compiler":
        monkeypatch.setattr("pass_sampling.gpu.compiled.has_compiler", lambda: True)
    if reason == "a processor":
        method = pkg.Autoregressive(method.model, method.sampling, processor=lambda prefix, logits: logits + 0.5)
    if reason == "looks at every text":
        settings = {"stop_strings": ["22"], "decode": lambda tokens: "".join(map(str, tokens))}
    if reason == "no C++ compiler":
        monkeypatch.setattr("shutil.which", lambda name: None)
    if reason == "out of room":

        def fails(*arguments: Any, **options: Any) -> None:
            raise OSError("out of room")

        monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fails)
    if reason == "of weights":
        monkeypatch.setattr("pass_sampling.gpu.compiling.written.LARGEST", 100)
    return method, settings


@pytest.mark.parametrize(
    "reason", ["a processor", "looks at every text", "no C++ compiler", "out of room", "of weights"]
)
def test_what_cannot_be_compiled_runs_as_it_is_with_one_warning(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pkg = package("gpu")
    method, settings = unfit(reason, monkeypatch)
    native, _ = compiled(method)
    with caplog.at_level(logging.WARNING):
        found = pkg.generate(native, (1, 0), 9, (), seed=3, **settings)
    same_records(found, pkg.generate(method, (1, 0), 9, (), seed=3, **settings))
    assert [reason in record.getMessage() for record in caplog.records] == [True]


@compiles
def test_native_code_is_given_nothing_that_does_not_fit() -> None:
    """It would read beyond what it is given: so uniforms are checked before, and a state is continued once."""
    from pass_sampling.gpu.tape import tape

    pkg = package("gpu")
    native, _ = compiled(kind_of("block"))
    state = native.start((1, 0), pkg.Ending(9, (2,)))  # as above: the same shapes, so it is compiled already
    uniforms = tape(3, [0], 0, native.num_slots)
    first, _ = native.step(state, uniforms)
    after, _ = native.step(first.copy(), uniforms)
    assert native.code and None not in native.code.values()
    for bad in (uniforms[:, 1:], uniforms + 1.0, uniforms[:0], uniforms.repeat(2, 1)):
        with pytest.raises(ValueError, match="uniforms: found"):
            native.step(first, bad)
    short = uniforms.float()  # other numbers, of another width
    narrow, wide = native.step(first.copy(), short)[1].rows(), native.step(first.copy(), short.double())[1].rows()
    assert narrow == wide
    native.step(first, uniforms)
    with pytest.raises(ValueError, match="expected a copy to continue twice"):
        native.step(first, uniforms)
    assert np.array_equal(after.tokens[:, :2], first.tokens[:, :2])


def test_packages_that_nobody_asks_for_are_forgotten(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, and never the one that was just made."""
    import os

    from pass_sampling.gpu.compiling import packages

    for age, name in enumerate(("new", "used", "old", "older")):
        (tmp_path / f"{name}.pt2").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.pt2", (1000 - age, 1000 - age))
    (tmp_path / "other").write_bytes(bytes(1000))
    for most, left in ((250, ["new.pt2", "other", "used.pt2"]), (10, ["new.pt2", "other"])):
        monkeypatch.setattr(packages, "MOST_KEPT", most)
        packages._forget_oldest(tmp_path / "new.pt2")
        assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_the_command_refuses_to_compile_without_a_compiler(
    box: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert run("generate", "--model", box.model, "--prompt", "def", "--compile") == 2
    assert "--compile: found no C++ compiler, expected one of c++, g++" in capsys.readouterr().err


@compiles
@pytest.mark.slow
def test_a_compiled_command_writes_the_text_of_one_that_is_not(box: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """In float64; what is compiled is said, and only the first time."""
    texts = []
    argv = ["generate", "--model", box.model, "--lookahead", box.vectors, "--method", "lookahead-fused"]
    argv += ["--prompt", "def", "--max-new-tokens", 12, "--dtype", "float64"]
    for more, said in (([], False), (["--compile"], True), (["--compile"], False)):
        assert run(*argv, *more) == 0
        printed = capsys.readouterr()
        texts.append(printed.out)
        assert ("compiling FusedPaSS for texts of up to 256 tokens" in printed.err) == said
    assert len(set(texts)) == 1
    assert run(*argv, "--compile", "--json") == 0
    assert read_strictly(capsys.readouterr().out)["options"]["compiled"] is True


@pytest.mark.usefixtures("written")
def test_a_text_that_the_host_looks_at_is_never_left_to_native_code() -> None:
    """Also where there is native code for its shapes already, or has been refused for a text before."""
    pkg = package("gpu")
    method = kind_of("plain")
    stops = {"stop_strings": ["02"], "decode": lambda tokens: "".join(map(str, tokens))}
    for order in (({}, stops), (stops, {})):
        native, _ = compiled(method)
        for settings in order:
            found = pkg.generate(native, (1, 0), 12, (), seed=3, **settings)
            alone = pkg.generate(method, (1, 0), 12, (), seed=3, **settings)
            same_records(found, alone)
            assert found.end == ("stop_string" if settings else "length")
        assert None not in native.code.values() and native.code


@pytest.mark.usefixtures("written")
def test_texts_under_way_and_new_ones_are_stepped_together() -> None:
    from pass_sampling.gpu.tape import tape

    pkg = package("gpu")
    method = kind_of("draft model")
    native, _ = compiled(method)
    ending, records = pkg.Ending(9, ()), []
    for each in (method, native):
        state, _ = each.step(each.start((1, 0), ending), tape(3, [0], 0, method.num_slots))
        other = each.start((2, 1), ending)
        _, record = each.step(type(state).stack([state, other]), tape(3, [0, 1], 1, method.num_slots))
        records.append([(row.tokens, row.num_positions) for row in record.rows()])
    assert records[0] == records[1]


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("kind", ["plain", "fused head", "draft model"])
def test_texts_that_grow_and_take_turns_are_those_of_the_step_as_it_is(kind: str) -> None:
    """What made a text's last state makes the next one only while it has room, and only that text's."""
    from pass_sampling.gpu.tape import tape

    pkg = package("gpu")
    method = kind_of(kind)
    native, _ = compiled(method, least_sight=16)
    texts: list[list[Any]] = []
    for each in (native, method):
        states = [each.start(prompt, pkg.Ending(24, ())) for prompt in ((1, 0), LONG[0], (2, 1))]
        found: list[Any] = []
        for cycle in range(48):
            for place in (0,) if cycle < 24 else (1, 2):  # one alone, then two in turns
                uniforms = tape(3, [place], cycle, each.num_slots)
                states[place], record = each.step(states[place], uniforms)
                found += [record.rows()[0].tokens]
        texts.append(found)
    assert texts[0] == texts[1]
    assert len({key[0] for key in native.code}) > 1 and native.is_native


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("kind", KINDS)
def test_cycles_run_together_are_those_run_one_by_one(kind: str) -> None:
    """Of two texts, with all laws; none is run behind a cycle in which a text ends, or where there is no more room."""
    import torch

    from pass_sampling.gpu.tape import tapes

    pkg = package("gpu")
    method = kind_of(kind)
    ending, prompts = pkg.Ending(24, (2,)), ((1, 0), LONG[0])
    native, _ = compiled(method, least_sight=16)
    ahead = tapes(3, [0, 1], 0, 26, method.num_slots)
    one, many = native.start_batch(prompts, ending), native.start_batch(prompts, ending)
    at_once = []
    while len(ahead):
        before = many.ended
        many, records = native.steps(many, ahead, trace=True)
        at_once.append(len(records))
        for place, (uniforms, record) in enumerate(zip(ahead, records, strict=False)):
            assert one.ended.tolist() == before.tolist(), "a text had ended before the last of these cycles"
            one, alone = native.step(one, uniforms, trace=True)
            assert record.rows() == alone.rows(), place
            for mine, yours in zip(record.rows(), alone.rows(), strict=True):
                for this, that in zip(mine.choices, yours.choices, strict=True):
                    assert (this.slot, this.outcome) == (that.slot, that.outcome)
                    assert np.array_equal(this.edges, that.edges)
        for row in torch.arange(2).split(1):
            assert one.select(row).agrees(many.select(row))
        ahead = ahead[len(records) :]
    assert max(at_once) > 1 and one.ended.all() and native.is_native


@pytest.mark.usefixtures("written")
def test_what_is_no_uniform_is_refused_in_whatever_cycle_it_comes() -> None:
    """The cycles before it are done, and the text can go on."""
    from pass_sampling.gpu.tape import tapes

    pkg = package("gpu")
    method = kind_of("block")
    native, _ = compiled(method)
    for place in range(3):
        good = tapes(3, [0], 0, 4, method.num_slots)
        bad = good.clone()
        bad[place, 0, 1] = 1.0
        state, records = native.start((1, 0), pkg.Ending(20, ())), []
        if place:
            state, records = native.steps(state, bad)
        assert len(records) == place
        with pytest.raises(ValueError, match="uniforms: found"):
            native.steps(state, bad[place:])
        state, more = native.steps(state, good[place:])
        assert len(records + more) == 4
        alone = method.start((1, 0), pkg.Ending(20, ()))
        for uniforms in good:
            alone, _ = method.step(alone, uniforms)
        assert state.agrees(alone)


@pytest.mark.usefixtures("written")
def test_uniforms_may_lie_in_memory_as_they_like() -> None:
    from pass_sampling.gpu.tape import tape, tapes

    pkg = package("gpu")
    native, _ = compiled(kind_of("block"))
    longer, turned = tape(3, [0, 1], 0, native.num_slots + 4), tapes(3, [0, 1], 0, 3, native.num_slots).transpose(0, 1)
    for each in (longer[None, :, : native.num_slots], turned.contiguous().transpose(0, 1), longer[None, :, 4:].float()):
        ways = []
        for uniforms in (each, each.contiguous()):
            state = native.start_batch([(1, 0), (2, 1)], pkg.Ending(20, ()))
            ways.append([record.rows() for record in native.steps(state, uniforms)[1]])
        assert ways[0] == ways[1]


@pytest.mark.usefixtures("written")
def test_who_listens_hears_of_every_cycle_before_the_next() -> None:
    """A callback is told of a cycle as soon as it is done, though native code could go on."""
    pkg = package("gpu")
    native, _ = compiled(kind_of("draft model"))
    known: list[int] = []
    heard: list[Any] = []

    def listens(request: int, record: Any) -> None:
        known.append(native.tally.cycles)
        heard.append(record)

    found = pkg.generate(native, (1, 0), 20, (), seed=3, callback=listens)
    assert known == list(range(1, len(heard) + 1)) and tuple(heard) == found.records
    same_records(found, pkg.generate(native, (1, 0), 20, (), seed=3))


def test_a_package_that_cannot_be_loaded_is_made_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pass_sampling.gpu.compiling import packages

    made: list[Any] = []

    def compile_again(graph: Any, examples: Any, path: Any) -> None:
        made.append(path)
        path.write_bytes(b"good")

    def load(path: str) -> Any:
        with open(path, "rb") as file:
            if file.read() != b"good":
                raise RuntimeError("damaged")
        return "package"

    monkeypatch.setattr(packages, "cache_folder", lambda what: tmp_path)
    monkeypatch.setattr(packages, "_digest", lambda graph, examples: "digest")
    monkeypatch.setattr(packages, "_compile", compile_again)
    monkeypatch.setattr(packages, "_call_of", lambda package: package)
    monkeypatch.setattr("torch._inductor.aoti_load_package", load)
    (tmp_path / "digest.pt2").write_bytes(b"bad")
    assert packages.compiled_package(None, []) == "package" and len(made) == 1  # type: ignore[arg-type,comparison-overlap]
    assert packages.compiled_package(None, []) == "package" and len(made) == 1  # type: ignore[arg-type,comparison-overlap]
