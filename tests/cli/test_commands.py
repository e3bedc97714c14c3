"""The command line where the input is good: what is printed, where, and that it is true."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import sys
from dataclasses import replace
from shutil import copytree
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from console import COLOUR, MARK, Box, Terminal, read_strictly, run
from folders import contents, tiny_config, write_checkpoint, write_json
from pass_sampling.gpu import LookAhead, load_model
from tokenizer_kinds import tokenizer_of

REPORTED = """text tokens method num_forward_passes tokens_per_forward seconds num_draft_tokens num_accepted_tokens
accepted_per_position""".split()


def generate(box: Box, capsys: pytest.CaptureFixture[str], *more: object) -> dict:
    """Run `generate --json` on the small model and return its object."""
    assert run("generate", "--model", box.model, "--prompt", "def", "--max-new-tokens", 24, "--json", *more) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return read_strictly(printed.out)


def test_generate_reports_what_it_did_in_json(box, capsys):
    for more, method in (([], "autoregressive"), (["--lookahead", box.vectors], "pass")):
        found = generate(box, capsys, *more, "--method", method)
        assert [name for name in REPORTED if name not in found] == []
        assert found["method"] == method and found["prompt"] == "def" and found["seed"] == 0
        assert len(found["tokens"]) == len(found["sources"]) <= 24
        assert found["tokens_per_forward"] == len(found["tokens"]) / found["num_forward_passes"]
        assert sum(found["accepted_per_position"]) == found["num_accepted_tokens"] <= found["num_draft_tokens"]
    assert found["num_draft_tokens"] > 0 and len(found["accepted_per_position"]) == 3


def test_every_rule_of_verification_writes_the_same_greedy_text(box, capsys):
    texts = set()
    for rule in ("token", "block", "match"):
        found = generate(box, capsys, "--lookahead", box.vectors, "--verify", rule, "--temperature", 0)
        assert found["verify"] == rule
        texts.add(tuple(found["tokens"]))
    assert len(texts) == 1
    assert generate(box, capsys, "--method", "autoregressive")["verify"] is None


def test_where_nobody_says_how_to_decode_a_plan_does(box, capsys):
    """And it is the same the next time."""
    found = [generate(box, capsys, *more) for more in ([], [], ["--lookahead", box.vectors])]
    assert [each["plan"]["options"]["method"] for each in found] == [each["method"] for each in found]
    assert found[0]["tokens"] == found[1]["tokens"] and found[0]["plan"] == found[1]["plan"]
    methods = [{way["options"]["method"] for way in each["plan"]["considered"]} for each in found]
    assert methods[0] == {"autoregressive", "prompt-lookup"}
    assert methods[2] == {"autoregressive", "pass", "pass-one-call"}


def test_stop_strings_of_the_folder_end_a_text_beside_those_of_the_command(box, capsys, tmp_path):
    shutil.copytree(box.model, tmp_path / "model")
    plain = ["generate", "--model", tmp_path / "model", "--prompt", "def", "--max-new-tokens", 24, "--temperature", 1]
    plain += ["--top-k", 0, "--seed", 1, "--method", "prompt-lookup"]
    assert run(*plain) == 0
    text = capsys.readouterr().out[:-1]
    early, late = re.findall("[ -~]{2}", text)[1], re.findall("[ -~]{2}", text)[-1]
    for suggested, said, stop in ((early, late, early), (late, early, early), ([late, early], "zzz", early)):
        write_json(tmp_path / "model" / "generation_config.json", {"eos_token_id": 0, "stop_strings": suggested})
        assert run(*plain, "--stop", said) == 0
        assert capsys.readouterr().out == text[: text.index(stop)] + "\n"


def test_the_text_is_the_tokenizers_decoding_of_the_tokens(box, capsys):
    tokenizer = AutoTokenizer.from_pretrained(str(box.model))
    for seed in range(5):
        found = generate(box, capsys, "--seed", seed, "--temperature", 1, "--top-k", 0, "--lookahead", box.vectors)
        tokens = found["tokens"][:-1] if found["end"] == "eos" else found["tokens"]
        assert found["text"] == tokenizer.decode(tokens)


def test_without_json_standard_output_is_the_text_and_a_newline(box, capsys, tmp_path):
    (tmp_path / "prompt").write_text("café of", encoding="utf-8")
    for more in (
        ["--prompt", "def"],
        ["--prompt", "日", "--lookahead", box.vectors],
        ["--prompt-file", tmp_path / "prompt"],
    ):
        argv = ["generate", "--model", box.model, "--max-new-tokens", 8, *more]
        assert run(*argv, "--json") == 0
        text = read_strictly(capsys.readouterr().out)["text"]
        assert run(*argv) == 0
        printed = capsys.readouterr()
        assert printed.out == text + "\n"
        assert re.search(r"tokens in \d+ passes, \d\.\d\d per pass", printed.err) and printed.err.count("\n") == 1


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(box, capsys):
    more = ["--lookahead", box.vectors, "--temperature", 1]
    first, again, other = (generate(box, capsys, "--seed", seed, *more)["tokens"] for seed in (1, 1, 2**64 - 1))
    assert first == again != other


def test_greedy_text_is_the_same_with_and_without_drafts(box, capsys):
    greedy = ["--temperature", 0, "--dtype", "float32", "--prompt", "of the"]
    plain = generate(box, capsys, "--method", "autoregressive", *greedy)
    drafted = generate(box, capsys, "--method", "pass", "--lookahead", box.vectors, *greedy)
    assert plain["tokens"] == drafted["tokens"] and drafted["method"] == "pass"
    assert plain["accepted_per_position"] == [] and plain["draft_acceptance_rate"] is None


def test_a_stop_string_ends_the_text_and_is_left_out(box, capsys):
    whole = generate(box, capsys)["text"]
    stop = next(character for character in whole[len(whole) // 2 :] if character != "\ufffd")
    found = generate(box, capsys, "--stop", stop, "--stop", "\nnever\n")
    assert found["text"] == whole[: whole.index(stop)] and found["end"] == "stop_string"


def test_a_special_token_ends_the_text_and_is_not_shown(box, capsys, tmp_path):
    whole = generate(box, capsys)["tokens"]
    tokenizer = AutoTokenizer.from_pretrained(str(box.model))
    texts = [tokenizer.decode([token]) for token in whole]
    count = next(n for n in range(8, 24) if texts[n] not in "def\ufffd" + "".join(texts[:n]))
    tokenizer.add_special_tokens(
        {"additional_special_tokens": tokenizer.convert_ids_to_tokens(whole[count : count + 1])}
    )
    model = copytree(box.model, tmp_path / "model")
    tokenizer.save_pretrained(str(model))
    found = generate(box._replace(model=model), capsys, "--stop", texts[count])
    assert found["tokens"] == whole[: count + 1] and found["end"] == "stop_string"
    assert found["text"] == tokenizer.decode(whole[:count])


def test_the_text_joins_the_prompt_as_its_tokens_do(capsys, tmp_path):
    """Also where the decoder strips a leading space; and what is streamed is the text, wherever it ends."""
    tokenizer = tokenizer_of("byte fallback, few bytes")
    write_checkpoint(tmp_path, tiny_config(vocab_size=len(tokenizer)))
    tokenizer.save_pretrained(str(tmp_path))
    texts = []
    for seed in range(6):
        arguments = ["generate", "--model", tmp_path, "--prompt", "hi", "--seed", seed, "--max-new-tokens", 7]
        assert run(*arguments, "--method", "autoregressive", "--json") == 0
        found = read_strictly(capsys.readouterr().out)
        texts.append(found["text"])
        prompt = tokenizer("hi").input_ids
        assert "hi" + texts[-1] == tokenizer.decode(prompt + found["tokens"], skip_special_tokens=True)
        assert run(*arguments, "--method", "autoregressive") == 0
        assert capsys.readouterr().out == texts[-1] + "\n"
    assert any(text.startswith(" ") for text in texts) and any("\ufffd" in text for text in texts)


def test_a_stop_string_that_the_tokenizer_never_decodes_to_is_refused(capsys, tmp_path):
    tokenizer = tokenizer_of("metaspace")
    write_checkpoint(tmp_path, tiny_config(vocab_size=len(tokenizer)))
    tokenizer.save_pretrained(str(tmp_path))
    assert run("generate", "--model", tmp_path, "--prompt", "hi", "--stop", "\u0436") == 2
    expected = "pass-sampling generate: --stop: found '\u0436', expected text that the tokenizer can decode to\n"
    assert capsys.readouterr().err == expected


def test_an_empty_prompt_is_the_token_that_texts_begin_with(box, capsys):
    assert (
        generate(box, capsys, "--prompt", "")["tokens"] == generate(box, capsys, "--prompt", "<|endoftext|>")["tokens"]
    )


def test_a_prompt_file_may_begin_with_a_byte_order_mark(box, capsys, tmp_path):
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfdef")
    run("generate", "--model", box.model, "--prompt-file", tmp_path / "marked", "--max-new-tokens", 24, "--json")
    assert read_strictly(capsys.readouterr().out)["tokens"] == generate(box, capsys)["tokens"]


def test_an_extreme_temperature_is_no_crash(box, capsys):
    for temperature in ("1e-320", "1e300", "0", "-0.0"):
        assert len(generate(box, capsys, "--temperature", temperature, "--lookahead", box.vectors)["tokens"]) <= 24


def test_a_character_that_the_output_cannot_show_is_written_by_number(box, capsys, monkeypatch):
    texts = [generate(box, capsys, "--seed", seed)["text"] for seed in range(4)]
    seed = next(seed for seed, text in enumerate(texts) if not text.isascii())
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert run("generate", "--model", box.model, "--prompt", "def", "--max-new-tokens", 24, "--seed", seed) == 0
        stream.flush()
    assert raw.getvalue() == (texts[seed] + "\n").encode("ascii", errors="backslashreplace")
    assert run("demo", "--model", box.model, "--lookahead", box.vectors, "--prompt", "café", "--max-new-tokens", 4) == 0


def demo(box: Box, *more: object) -> int:
    prompts = ["--prompt", "def", "--prompt", "café"]
    return run("demo", "--model", box.model, "--lookahead", box.vectors, *prompts, "--max-new-tokens", 9, *more)


def test_demo_reports_all_methods_in_json(box, capsys):
    assert demo(box, "--json", "--repeats", 2) == 0
    printed = capsys.readouterr()
    rows = read_strictly(printed.out)["rows"]
    assert printed.err == "" and list(rows) == ["plain decoding", "PaSS", "PaSS, one call"]
    for row in rows.values():
        assert row["tokens_per_forward"] == row["tokens"] / row["num_forward_passes"]
        assert row["tokens_per_second"] == row["tokens"] / row["seconds"]
        assert row["milliseconds_per_pass"] == 1000 * row["seconds"] / row["num_forward_passes"]
        assert row["ratio_to_plain"] == row["tokens_per_second"] / rows["plain decoding"]["tokens_per_second"]
    assert rows["plain decoding"]["ratio_to_plain"] == 1.0


def test_the_figures_of_the_demo_are_those_of_the_turn_with_the_median_ratio(box, capsys, monkeypatch):
    seconds = [4, 7, 2, 6, 7, 2, 1, 7, 1, 8, 7, 1]  # of all methods in turn
    begun = [100, 100, 100]  # the first turn warms up, and nobody looks how long it took
    clock = itertools.accumulate([*begun, *(step for duration in seconds for step in (100, duration))])
    monkeypatch.setattr("pass_sampling.gpu.cli.demo.time", SimpleNamespace(perf_counter=clock.__next__))
    assert demo(box, "--json", "--repeats", 4) == 0
    rows = read_strictly(capsys.readouterr().out)["rows"].values()  # ratios of times 2, 3, 1 and 8
    assert [row["seconds"] for row in rows] == [4, 7, 2]


def test_demo_leaves_out_pass_as_published_where_vectors_come_with_a_head(box, capsys, tmp_path):
    from pass_sampling.gpu import LookAhead, SamplerHead

    vectors = LookAhead.load(box.vectors)
    replace(vectors, head=SamplerHead.random(vectors.hidden_size, 8, 0)).save(tmp_path / "parts")
    argv = ["demo", "--model", box.model, "--lookahead", tmp_path / "parts", "--prompt", "def", "--max-new-tokens", 9]
    assert run(*argv, "--json", "--repeats", 1) == 0
    assert list(read_strictly(capsys.readouterr().out)["rows"]) == ["plain decoding", "PaSS, one call"]


def test_the_last_sentences_of_the_demo_say_what_its_table_says(box, capsys):
    assert demo(box, "--repeats", 3) == 0
    out = capsys.readouterr().out
    names = ("plain decoding", "PaSS", "PaSS, one call")
    rows = {name: re.search(rf"^{name} +(\d.+)$", out, re.MULTILINE)[1].split() for name in names}
    plain, *drafting = ([float(figure) for figure in row] for row in rows.values())
    for drafted, sentence in zip(drafting, out.splitlines()[-2:], strict=True):
        fewer, dearer, speed = map(float, re.findall(r"(\d+\.\d\d) times", sentence))
        assert f"{fewer:.2f}" == f"{drafted[0] / drafted[1] / (plain[0] / plain[1]):.2f}"
        assert speed == drafted[-1] and plain[-1] == 1.0
        half = 0.005  # what rounding to two places may take from a figure
        low, high = (fewer - half) / (speed + half), (fewer + half) / (speed - half)
        assert low - half <= dearer <= high + half
        verification = "faster than" if speed > 1.02 else "slower than" if speed < 0.98 else "as fast as"
        assert f"{verification} plain decoding" in sentence or speed in (1.02, 0.98)


def test_demo_shows_the_same_text_in_marks_on_a_pipe_and_in_colours_on_a_terminal(box, capsys, monkeypatch):
    assert demo(box, "--repeats", 1) == 0
    marked = capsys.readouterr().out.split("\nThe same distribution")[0].split("\n", 1)[1]
    assert MARK.search(marked) and not COLOUR.search(marked)
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert demo(box, "--repeats", 1) == 0
    coloured = terminal.getvalue().split("\nThe same distribution")[0].split("\n", 1)[1]
    assert COLOUR.search(coloured) and COLOUR.sub("", coloured) == MARK.sub("", marked)


TRAIN = "--context 16 --batch-size 2 --steps 3 --num-lookahead 2".split()
FORECAST = r"^training will take about \d+\.\d minutes and \d+\.\d GiB of memory$"


def acceptance(who: str, printed: str) -> list[str]:
    """The lines that give somebody's acceptance of two drafts, and the tokens that follow from it."""
    return re.findall(rf"^{who} +[01]\.\d{{3}} +[01]\.\d{{3}} +[123]\.\d{{3}}$", printed, re.MULTILINE)


@pytest.mark.parametrize("learn", [["--text", "text"], ["--self", "--self-tokens", "90"]], ids=["text", "self"])
def test_train_says_what_it_takes_and_then_the_acceptance_of_every_draft(learn, box, capsys, tmp_path):
    learn = [str(box.text) if word == "text" else word for word in learn]
    output = tmp_path / "new" / "vectors"
    assert run("train", "--model", box.model, *TRAIN, *learn, "--output", output) == 0
    printed = capsys.readouterr()
    assert re.search(FORECAST, printed.err, re.MULTILINE)
    assert printed.out.count("\ndraft                 1       2  tokens\n") == 3
    for who in ("these vectors", "random vectors", "a fixed token"):
        assert len(acceptance(who, printed.out)) == 3
    assert [path.name for path in output.parent.iterdir()] == ["vectors"]
    LookAhead.load(output).check(load_model(box.model))
    assert "# Look-ahead vectors for `model`\n" in (output / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("flags", ["--adapter-rank 2 --head-width 6 --depth-decay 0.9", "--head-width 6 --head-alone"])
def test_train_makes_an_adapter_and_a_head_that_decoding_uses(flags, box, capsys, tmp_path):
    argv = ["train", "--model", box.model, *TRAIN, *flags.split(), "--text", box.text, "--output", tmp_path / "parts"]
    assert run(*argv) == 0
    assert len(acceptance("these parts", capsys.readouterr().out)) == 3
    lookahead = LookAhead.load(tmp_path / "parts")
    assert lookahead.head.width == 6 and lookahead.head.uses_lookahead == (lookahead.adapter is not None)
    argv = ["generate", "--model", box.model, "--lookahead", tmp_path / "parts", "--method", "pass-one-call"]
    assert run(*argv, "--prompt", "def", "--max-new-tokens", 9, "--json") == 0
    assert read_strictly(capsys.readouterr().out)["num_draft_tokens"] > 0


def test_train_prints_nothing_but_json_where_json_is_asked_for(box, capsys, tmp_path):
    argv = ["train", "--model", box.model, *TRAIN, "--text", box.text, "--output", tmp_path / "vectors", "--json"]
    assert run(*argv) == 0
    printed = capsys.readouterr()
    assert len(read_strictly(printed.out)["held_out"]["acceptance"]) == 2 and printed.err == ""


def test_pretrain_says_what_it_takes_and_its_model_can_be_used(box, capsys, tmp_path):
    sizes = "--vocab-size 300 --hidden-size 16 --intermediate-size 8 --layers 1 --heads 2 --context 32".split()
    argv = ["pretrain", *sizes, "--steps", 3, "--batch-size", 2, "--text", box.text]
    argv += ["--held-out-list", box.root / "list.txt", "--output", tmp_path / "model"]
    assert run(*argv) == 0
    printed = capsys.readouterr()
    assert re.search(FORECAST, printed.err, re.MULTILINE)
    assert printed.err.startswith("training will take")
    assert re.search(r"held-out loss \d\.\d{3} nats per token", printed.out)
    argv[-1] = tmp_path / "again"
    assert run(*argv, "--json") == 0
    record = read_strictly(capsys.readouterr().out)
    assert record["held_out_files"] == ["0.py"] and record["output"] == str(tmp_path / "again")
    assert run("generate", "--model", tmp_path / "model", "--prompt", "def", "--max-new-tokens", 3) == 0


def test_pretrain_with_compile_and_no_compiler_is_refused(box, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    before = contents(box.root)
    assert run("pretrain", "--compile", "--text", box.text, "--output", tmp_path / "new") == 2
    assert capsys.readouterr().err.startswith("pass-sampling pretrain: --compile: found no C++ compiler")
    assert contents(box.root) == before and not list(tmp_path.iterdir())
