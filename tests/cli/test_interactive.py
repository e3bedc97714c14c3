"""Prompts from standard input, and conversations through chat templates."""

import io

import pytest

from console import Terminal, read_strictly, run
from pass_sampling.gpu.cli.console import Conversation
from pass_sampling.gpu.cli.generate import prompts
from pass_sampling.gpu.cli.options import ModelOptions
from pass_sampling.gpu.training.tokens import load_tokenizer

BOUNDS = ["--max-new-tokens", "8", "--method", "autoregressive"]


def feed(monkeypatch, text):
    content = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def generate(capsys, *argv):
    assert run("generate", *argv, *BOUNDS) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("", []),
        ("a\nb", ["a", "b"]),
        ("\n  \na \r\n", ["a "]),
        ("a\\\nb\\\n\\\nc\nd\n", ["a\nb\n\nc", "d"]),
        ("a\n/quit\nb\n", ["a"]),
        ("a\\\n", ["a\n"]),
        ("a\\\n/quit\n /quit \nb\n", ["a\n/quit"]),
    ],
)
def test_a_prompt_is_a_line_or_several_with_backslashes(typed, read):
    assert list(prompts(io.StringIO(typed))) == read


def test_on_a_terminal_a_mark_asks_for_a_line_and_another_for_more(monkeypatch, capsys):
    lines, marks = iter(["a\\", "b"]), []

    def typed(mark):
        marks.append(mark)
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", typed)
    terminal = Terminal("c\n")
    monkeypatch.setattr("sys.stdin", terminal)
    assert list(prompts(terminal)) == ["c"] and capsys.readouterr().err == "> > "  # standard output is none
    monkeypatch.setattr("sys.stdout", Terminal())
    assert list(prompts(terminal)) == ["a\nb"] and marks == ["> ", ". ", "> "]


def test_every_line_is_continued_and_the_model_is_loaded_once(box, capsys, monkeypatch):
    alone, _ = generate(capsys, "--model", box.model, "--prompt", "def")
    loads = []
    load = ModelOptions.load
    monkeypatch.setattr(ModelOptions, "load", lambda target: loads.append(target) or load(target))
    feed(monkeypatch, "def\nfor value\ndef\n/quit\nnever\n")
    out, err = generate(capsys, "--model", box.model, "--interactive")
    assert out.startswith(alone) and len(loads) == 1
    assert err.startswith("3 texts, ") and err.endswith("per pass, method autoregressive\n")
    feed(monkeypatch, "def\nfor value\ndef\n")
    assert generate(capsys, "--model", box.model, "--interactive")[0] == out  # the same seed, the same texts
    feed(monkeypatch, "")
    assert generate(capsys, "--model", box.model, "--interactive") == (
        "",
        "0 texts, 0 tokens in 0 passes, 0.00 per pass, method autoregressive\n",
    )


def test_what_cannot_be_continued_is_refused_and_the_next_prompt_read(box, capsys, monkeypatch):
    feed(monkeypatch, b"caf\xe9\n" + b"return " * 90 + b"\ndef\n")
    out, err = generate(capsys, "--model", box.model, "--interactive")
    lines = err.splitlines()
    assert len(lines) == 3 and lines[2].startswith("1 texts, ") and out.count("\n") >= 1
    assert lines[0].startswith("pass-sampling generate: standard input is not UTF-8")
    assert lines[1].startswith("pass-sampling generate: found a prompt of ")
    assert lines[1].endswith("expected at most 88: the model's context, less --max-new-tokens")


def test_a_prompt_is_put_as_a_message(box, capsys):
    found = []
    for text, more in (("not in", ["--chat", "--system", "the value"]), ("<s>the value\n<u>not in\n<a>", [])):
        out, _ = generate(capsys, "--model", box.chat, "--prompt", text, "--json", *more)
        found.append(read_strictly(out))
    assert found[0]["tokens"] == found[1]["tokens"]
    assert (found[0]["prompt"], found[0]["chat"], found[0]["system"]) == ("not in", True, "the value")
    assert (found[1]["chat"], found[1]["system"]) == (False, None)


def test_a_conversation_is_kept_and_its_oldest_exchanges_make_room(box):
    tokenizer = load_tokenizer(box.chat)
    talk = Conversation(tokenizer, box.chat, "s")
    for number in range(3):
        tokens, left_out = talk.tokens(f"m{number}", 10**6)
        talk.add(f"m{number}", f"r{number}", left_out)
    everything = "<s>s\n<u>m0\n<a>r0\n<u>m1\n<a>r1\n<u>m2\n<a>r2\n<u>m3\n<a>"
    tokens, left_out = talk.tokens("m3")
    assert (tokenizer.decode(tokens), left_out) == (everything, 0)
    for room, first in ((len(tokens), 0), (len(tokens) - 1, 1), (len(tokenizer("<s>s\n<u>m3\n<a>").input_ids), 3)):
        shorter, left_out = talk.tokens("m3", room)
        assert left_out == first and len(shorter) <= room
        assert tokenizer.decode(shorter) == "<s>s\n" + everything[everything.index(f"<u>m{first}") :]
    with pytest.raises(ValueError, match=r"^found a prompt of \d+ tokens, expected at most 3: the model's context"):
        talk.tokens("m3", 3)
    assert talk.tokens("m3")[0] == tokens  # nothing was forgotten by asking
    talk.add("m3", "r3", left_out=3)
    assert tokenizer.decode(talk.tokens("m4")[0]) == "<s>s\n<u>m3\n<a>r3\n<u>m4\n<a>"


def test_every_turn_reads_those_before(box, capsys, monkeypatch):
    import pass_sampling.gpu.cli.generate as generation

    read = []
    tokenizer, write = load_tokenizer(box.chat), generation.generate

    def watched(method, prompt, *more, **named):
        read.append(tokenizer.decode(prompt))
        return write(method, prompt, *more, **named)

    monkeypatch.setattr(generation, "generate", watched)
    feed(monkeypatch, "a\nno\nb\n" + "c\n" * 4)
    out, err = generate(capsys, "--model", box.chat, "--interactive", "--chat")
    answers = out.split("\n")
    assert read[:2] == ["<u>a\n<a>", f"<u>a\n<a>{answers[0]}\n<u>no\n<a>"]
    assert len(read) == 7 and "the context is full: removed the 1 oldest exchanges\n" in err
    assert all(text.endswith(f"<u>{message}\n<a>") for text, message in zip(read[2:], "bcccc", strict=True))
