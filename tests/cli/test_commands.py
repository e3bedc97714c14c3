"""The command line with good input: what is printed, where, and that it is true."""

import io
import json
import re
import shutil
import sys

import pytest
from transformers import AutoTokenizer

from console import COLOUR, MARK, Terminal, read_strictly, run
from folders import tiny_config, write_checkpoint, write_json
from pass_sampling.gpu import LookAhead, load_model
from pass_sampling.gpu.decode_options import method_names
from pass_sampling.gpu.training import text as own_text
from tokenizer_kinds import tokenizer_of

PLAIN = ["--method", "autoregressive"]
TOKENS = 24
GREEDY_PROMPT = "def of the of"
ONE_CALL = {"method": "pass-one-call", "num_lookahead": 3, "parts": [], "refine": "unrefined", "verify": "token"}
HEADED = ONE_CALL | {"parts": ["head"], "refine": "head"}
TREE = ONE_CALL | {"num_lookahead": 2, "candidates": "3,2+0+1", "verify": "without-replacement"}
DRAFTED = {"method": "draft-model", "drafter": "small", "num_draft": 4, "verify": "token"}
LOOKUP = {"method": "prompt-lookup", "drafter": "prompt lookup", "num_draft": 4, "verify": "token"}
NGRAM = LOOKUP | {"method": "ngram", "drafter": "1-gram"}
TREES = "without-replacement with-replacement k-seq match".split()

# By flags: what --json must say of the method and of its options, all of them.
WAYS = {
    "--method autoregressive": {"method": "autoregressive"},
    "--lookahead {vectors} --verify token": {"method": "pass", "num_lookahead": 3, "verify": "token"},
    "--lookahead {vectors} --verify block": {"method": "pass", "num_lookahead": 3, "verify": "block"},
    "--lookahead {vectors} --num-draft 2 --verify match": {"method": "pass", "num_lookahead": 2, "verify": "match"},
    "--lookahead {vectors} --method pass-one-call": ONE_CALL,
    "--lookahead {vectors} --method pass-one-call --num-draft 2": ONE_CALL | {"num_lookahead": 2},
    "--lookahead {vectors} --refine none --verify block": ONE_CALL | {"verify": "block"},
    "--lookahead {vectors} --refine ngram --ngram {ngram} --verify match": ONE_CALL
    | {"refine": "ngram", "verify": "match"},
    "--lookahead {vectors} --method pass-one-call --groups 0,2": ONE_CALL | {"groups": [0, 2]},
    "--lookahead {root}/headed --refine head": HEADED,
    "--lookahead {root}/headed --refine none": HEADED | {"refine": "unrefined"},
    "--lookahead {vectors} --candidates 3,2+0+1": TREE,
    **{f"--lookahead {{vectors}} --candidates 3,2+0+1 --verify {each}": TREE | {"verify": each} for each in TREES},
    "--draft-model {draft} --num-draft 3": DRAFTED | {"num_draft": 3},
    "--draft-model {draft} --schedule fixed": DRAFTED,
    "--draft-model {draft} --schedule heuristic": DRAFTED | {"schedule": "Heuristic"},
    "--draft-model {draft} --schedule entropy": DRAFTED | {"schedule": "EntropyBound"},
    "--method prompt-lookup --num-draft 6 --verify block": LOOKUP | {"num_draft": 6, "verify": "block"},
    "--ngram {ngram} --method ngram --verify match": NGRAM | {"verify": "match"},
    "--method prompt-lookup --lenience 1": LOOKUP,
}
for _rule in TREES:
    _tree = {"candidates": "2,1", "verify": _rule}
    for _way, _said in ("--draft-model {draft}", DRAFTED), ("--method prompt-lookup", LOOKUP):
        _said = {name: value for name, value in _said.items() if name != "num_draft"}
        WAYS[f"{_way} --candidates 2,1 --verify {_rule}"] = _said | _tree


def generate(box, capsys, *more, model=None):
    """Run `generate --json` on the small model and return its object."""
    argv = ["generate", "--model", model or box.model, "--prompt", "def", "--max-new-tokens", TOKENS, "--json"]
    assert run(*argv, *more) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return read_strictly(printed.out)


@pytest.fixture(scope="module")
def greedy(box):
    """The tokens of greedy plain decoding."""
    import pass_sampling.gpu as port

    prompt = AutoTokenizer.from_pretrained(str(box.model))(GREEDY_PROMPT).input_ids
    method = port.Autoregressive(load_model(box.model), port.SamplingConfig(temperature=0))
    found = port.generate(method, prompt, TOKENS).tokens
    assert len(found) == TOKENS
    return list(found)


@pytest.mark.parametrize("flags", WAYS)
def test_a_method_runs_as_asked_and_its_greedy_text_is_that_of_plain_decoding(flags, box, capsys, greedy):
    given = flags.format(**box._asdict()).split()
    found = generate(box, capsys, *given, "--temperature", 0, "--prompt", GREEDY_PROMPT)
    assert {"method": found["method"]} | found["options"] == WAYS[flags]
    assert found["verify"] == WAYS[flags].get("verify") and found["plan"] is None
    assert found["tokens"] == greedy and len(found["sources"]) == len(greedy)
    assert (found["prompt"], found["seed"], found["temperature"], found["top_k"]) == (GREEDY_PROMPT, 0, 0, 10)
    assert found["tokens_per_forward"] == len(greedy) / found["num_forward_passes"]
    assert sum(found["accepted_per_position"]) == found["num_accepted_tokens"] <= found["num_draft_tokens"]
    assert (found["num_draft_passes"] > 0) == (found["method"] == "draft-model") and found["seconds"] > 0
    if found["method"] == "autoregressive":
        assert found["accepted_per_position"] == [] and found["draft_acceptance_rate"] is None
    elif found["method"].startswith("pass"):
        assert found["num_draft_tokens"] > 0


@pytest.mark.parametrize(
    ("method", "option", "value"), [("draft-model", "lenience", 0.5), ("pass-one-call", "accept-top-k", 3)]
)
def test_lossy_verification_is_labelled_wherever_it_is_reported(method, option, value, box, capsys):
    drafts = ["--draft-model", box.draft] if method == "draft-model" else ["--lookahead", box.vectors]
    flags = [
        "--method",
        method,
        *drafts,
        "--temperature",
        0 if option == "accept-top-k" else 0.8,
        "--max-new-tokens",
        12,
    ]
    key = "lossy_" + option.replace("-", "_")
    assert generate(box, capsys, *flags, f"--{option}", value)["options"][key] == value
    for given in (value, 1):
        assert run("generate", "--model", box.model, "--prompt", "def", *flags, f"--{option}", given) == 0
        label = f", LOSSY: {option} {given}" if given != 1 else ""
        assert capsys.readouterr().err.endswith(f"method {method}{label}\n")
    assert key not in generate(box, capsys, *flags, f"--{option}", 1)["options"]


@pytest.mark.parametrize("more", [["--prompt", "def"], ["--prompt", "日", "--lookahead", "vectors"]])
def test_without_json_standard_output_is_the_text_and_a_newline(more, box, capsys):
    more = [*(box.vectors if each == "vectors" else each for each in more)]
    argv = ["generate", "--model", box.model, "--max-new-tokens", 8, "--verify", "token", *more]
    argv += [] if "--lookahead" in more else ["--method", "prompt-lookup"]
    assert run(*argv, "--json") == 0
    found = read_strictly(capsys.readouterr().out)
    assert run(*argv) == 0
    printed = capsys.readouterr()
    assert printed.out == found["text"] + "\n"
    assert re.search(r"tokens in \d+ passes, \d\.\d\d per pass", printed.err) and printed.err.count("\n") == 1
    assert found["prompt"] == more[1]


def test_stop_strings_of_the_folder_and_of_the_command_end_a_text(box, capsys, tmp_path):
    model = shutil.copytree(box.model, tmp_path / "model")
    plain = ["generate", "--model", model, "--prompt", "def", "--max-new-tokens", TOKENS, "--temperature", 1]
    plain += ["--top-k", 0, "--seed", 1, "--method", "prompt-lookup"]
    assert run(*plain) == 0
    text = capsys.readouterr().out[:-1]
    early, late = re.findall("[ -~]{2}", text)[1], re.findall("[ -~]{2}", text)[-1]
    for suggested, said, stop in ((early, late, early), (late, early, early), ([late, early], "zzz", early)):
        write_json(model / "generation_config.json", {"eos_token_id": 0, "stop_strings": suggested})
        assert run(*plain, "--stop", said) == 0
        assert capsys.readouterr().out == text[: text.index(stop)] + "\n"
    assert run(*plain, "--stop", "\nnever\n", "--stop", early, "--json") == 0
    found = read_strictly(capsys.readouterr().out)
    assert (found["text"], found["end"]) == (text[: text.index(early)], "stop_string")


def test_a_special_token_ends_the_text_and_is_not_shown(box, capsys, tmp_path):
    whole = generate(box, capsys, *PLAIN)["tokens"]
    tokenizer = AutoTokenizer.from_pretrained(str(box.model))
    texts = [tokenizer.decode([token]) for token in whole]
    count = next(n for n in range(8, TOKENS) if texts[n] not in "def\ufffd" + "".join(texts[:n]))
    special = tokenizer.convert_ids_to_tokens(whole[count : count + 1])
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    model = shutil.copytree(box.model, tmp_path / "model")
    tokenizer.save_pretrained(str(model))
    found = generate(box, capsys, *PLAIN, "--stop", texts[count], model=model)
    assert found["tokens"] == whole[: count + 1] and found["end"] == "stop_string"
    assert found["text"] == tokenizer.decode(whole[:count])


def test_the_text_joins_the_prompt_as_its_tokens_do(capsys, tmp_path):
    """The decoder strips a leading space; the streamed text is the same wherever it ends."""
    tokenizer = tokenizer_of("byte fallback, few bytes")
    write_checkpoint(tmp_path, tiny_config(vocab_size=len(tokenizer)))
    tokenizer.save_pretrained(str(tmp_path))
    texts = []
    for seed in range(6):
        argv = ["generate", "--model", tmp_path, "--prompt", "hi", "--seed", seed, "--max-new-tokens", 7, *PLAIN]
        assert run(*argv, "--json") == 0
        found = read_strictly(capsys.readouterr().out)
        texts.append(found["text"])
        tokens = tokenizer("hi").input_ids + found["tokens"]
        assert "hi" + texts[-1] == tokenizer.decode(tokens, skip_special_tokens=True)
        assert run(*argv) == 0
        assert capsys.readouterr().out == texts[-1] + "\n"
    assert any(text.startswith(" ") for text in texts) and any("\ufffd" in text for text in texts)


def test_a_character_that_the_output_cannot_show_is_written_by_number(box, capsys, monkeypatch):
    texts = [generate(box, capsys, *PLAIN, "--seed", seed)["text"] for seed in range(4)]
    seed = next(seed for seed, text in enumerate(texts) if not text.isascii())
    raw = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", newline=""))
        argv = ["generate", "--model", box.model, "--prompt", "def", "--max-new-tokens", TOKENS, *PLAIN]
        assert run(*argv, "--seed", seed) == 0
        sys.stdout.flush()
        assert raw.getvalue() == (texts[seed] + "\n").encode("ascii", errors="backslashreplace")
        assert demo(box, "--repeats", 1) == 0


def demo(box, *more, vectors=None):
    prompts = ["--prompt", "def", "--prompt", "café", "--max-new-tokens", 9]
    return run("demo", "--model", box.model, "--lookahead", vectors or box.vectors, *prompts, *more)


def test_the_demo_reports_all_methods_in_json_but_pass_for_vectors_with_a_head(box, capsys):
    assert demo(box, "--json", "--repeats", 2) == 0
    printed = capsys.readouterr()
    rows = read_strictly(printed.out)["rows"]
    assert printed.err == "" and list(rows)[:3] == ["plain decoding", "PaSS", "PaSS, one call"]
    assert len(rows) == 4 and list(rows)[3].removeprefix("plan: ") in method_names()
    for row in rows.values():
        assert row["tokens_per_forward"] == row["tokens"] / row["num_forward_passes"]
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"], rel=1e-12)
        assert row["milliseconds_per_pass"] == 1000 * row["seconds"] / row["num_forward_passes"]
        assert row["ratio_to_plain"] == row["tokens_per_second"] / rows["plain decoding"]["tokens_per_second"]
    assert rows["plain decoding"]["ratio_to_plain"] == 1.0
    assert demo(box, "--json", "--repeats", 1, vectors=box.root / "headed") == 0
    assert list(read_strictly(capsys.readouterr().out)["rows"])[:2] == ["plain decoding", "PaSS, one call"]


def test_the_demo_shows_the_same_text_in_marks_on_a_pipe_and_in_colours_on_a_terminal(box, capsys, monkeypatch):
    assert demo(box, "--repeats", 1) == 0
    marked = capsys.readouterr().out.split("\nDecoders that sample")[0].split("\n", 1)[1]
    assert MARK.search(marked) and not COLOUR.search(marked)
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert demo(box, "--repeats", 1) == 0
    coloured = terminal.getvalue().split("\nDecoders that sample")[0].split("\n", 1)[1]
    assert COLOUR.search(coloured) and COLOUR.sub("", coloured) == MARK.sub("", marked)


TRAIN = "--context 16 --batch-size 2 --steps 3 --num-lookahead 2".split()
BAR = r"training: 100%.* 3/3 .*loss="


def acceptance(who, printed):
    """The lines with an acceptance of two drafts, and the tokens that follow from it."""
    return re.findall(rf"^{who} +[01]\.\d{{3}} +[01]\.\d{{3}} +[123]\.\d{{3}}$", printed, re.MULTILINE)


@pytest.mark.parametrize("learn", ["--text {text}", "--self --self-tokens 90"])
def test_train_shows_its_steps_and_then_prints_the_acceptance_of_every_draft(learn, box, capsys, tmp_path):
    output = tmp_path / "new" / "vectors"
    learn = learn.format(text=box.text).split()
    assert run("train", "--model", box.model, *TRAIN, *learn, "--output", output) == 0
    printed = capsys.readouterr()
    assert re.search(BAR, printed.err)
    assert printed.out.count("\ndraft                 1       2  tokens\n") == 3
    for who in ("these vectors", "random vectors", "a fixed token"):
        assert len(acceptance(who, printed.out)) == 3
    assert [path.name for path in output.parent.iterdir()] == ["vectors"]
    LookAhead.load(output).check(load_model(box.model))


@pytest.mark.parametrize("flags", ["--adapter-rank 2 --depth-decay 0.9", "--head-alone", "--draft-vocab-size 12"])
def test_train_makes_parts_that_decoding_uses(flags, box, capsys, tmp_path):
    argv = ["train", "--model", box.model, *TRAIN, "--head-width", 6, *flags.split(), "--text", box.text]
    assert run(*argv, "--output", tmp_path / "parts") == 0
    assert len(acceptance("these parts", capsys.readouterr().out)) == 3
    lookahead = LookAhead.load(tmp_path / "parts")
    assert lookahead.head.width == 6 and lookahead.head.uses_lookahead == ("alone" not in flags)
    assert (lookahead.adapter is not None) == ("rank" in flags)
    found = generate(box, capsys, "--lookahead", tmp_path / "parts", "--method", "pass-one-call")
    assert found["num_draft_tokens"] > 0
    assert found["options"].get("draft_vocab_size") == (12 if "vocab" in flags else None)


@pytest.fixture
def asked(monkeypatch):
    """The prompts, batch by batch, after which a model writes text to learn from."""
    batches, written = [], own_text.generate_batch

    def write(method, prompts, *rest, **named):
        batches.append(list(map(tuple, prompts)))
        return written(method, prompts, *rest, **named)

    monkeypatch.setattr(own_text, "generate_batch", write)
    return batches


@pytest.mark.parametrize("chat", [False, True])
def test_train_learns_from_the_models_own_answers_to_prompts(chat, box, asked, tmp_path):
    folder = box.chat if chat else box.model
    flags = ["--self", "--self-tokens", 90, "--prompts", box.prompts, *["--chat"] * chat]
    assert run("train", "--model", folder, *TRAIN, *flags, "--output", tmp_path / "vectors") == 0
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    texts = [json.loads(line)["prompt"] for line in box.prompts.read_text(encoding="utf-8").splitlines()]
    if chat:
        texts = [[{"role": "user", "content": text}] for text in texts]
        expected = [tokenizer.apply_chat_template(each, add_generation_prompt=True).input_ids for each in texts]
    else:
        expected = [tokenizer(text).input_ids for text in texts]
    assert {prompt for batch in asked for prompt in batch} == set(map(tuple, expected))


def test_in_a_chat_without_prompts_the_model_asks_the_questions_that_it_answers(box, asked, tmp_path):
    flags = ["--self", "--self-tokens", 90, "--chat"]
    assert run("train", "--model", box.chat, *TRAIN, *flags, "--output", tmp_path / "vectors") == 0
    tokenizer = AutoTokenizer.from_pretrained(str(box.chat))
    before, after = (tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in ("<u>", "\n<a>"))
    *questions, answers = asked
    assert {prompt for batch in questions for prompt in batch} == {before}
    assert len(set(answers)) > len(answers) / 2, "questions of their own"
    for prompt in answers:
        assert prompt[: len(before)] == before and prompt[-len(after) :] == after


def test_pretrain_shows_its_steps_and_makes_a_model_that_generates(box, capsys, tmp_path):
    sizes = "--vocab-size 300 --hidden-size 16 --intermediate-size 8 --layers 1 --heads 2 --context 32".split()
    argv = ["pretrain", *sizes, "--steps", 3, "--batch-size", 2, "--text", box.text]
    argv += ["--held-out-list", box.root / "list.txt", "--output", tmp_path / "model"]
    assert run(*argv) == 0
    printed = capsys.readouterr()
    assert re.search(BAR, printed.err) and printed.err.lstrip().startswith("training:")
    assert re.search(r"held-out loss \d\.\d{3} nats per token", printed.out)
    argv[-1] = tmp_path / "again"
    assert run(*argv, "--json") == 0
    record = read_strictly(capsys.readouterr().out)
    assert record["held_out_files"] == ["0.py"] and record["output"] == str(tmp_path / "again")
    assert generate(box, capsys, *PLAIN, "--max-new-tokens", 3, model=tmp_path / "model")["tokens"]
