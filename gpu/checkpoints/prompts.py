"""Prompts for chat models, of many kinds, put together from lists of words: to plan with, and to learn answers to.

  python -m pass_sampling.gpu.checkpoints.prompts 4000 > prompts.jsonl
  pass-sampling train --model smollm2-135m --self --prompts prompts.jsonl --chat --output HEAD ...

Texts to summarise are passages of Python's own help. None is a prompt of Spec-Bench, on which decoding is measured.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import random
import re
import sys
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = json.loads(Path(__file__).with_name("prompt_words.json").read_text(encoding="utf-8"))
KINDS = (
    "translation summarization rag qa math writing role reason extract coding qa math summarization rag writing"
).split()
QUESTIONS = (
    "Answer the question from the text above: what is it about?",
    "What does the text above say about its main subject?",
    "According to the text, what should one know first?",
    "Which names are mentioned in the text above?",
    "When should one use what the text describes?",
    "Who is the text written for?",
)


def prompts(count: int, seed: int) -> list[dict[str, str]]:
    """Return so many different prompts, each with its kind, as lines of a prompts file hold them."""
    draw, texts = random.Random(seed), passages()
    found: dict[str, str] = {}
    while len(found) < count:
        kind = KINDS[len(found) % len(KINDS)]
        found.setdefault(_prompt(kind, draw, texts), kind)
    return [{"category": kind, "prompt": prompt} for prompt, kind in found.items()]


def passages() -> list[str]:
    """Return passages of Python's help that are long enough to be summarised and short enough to be read."""
    parts = (part for text in pydoc_data.topics.topics.values() for part in re.split(r"\n\n(?=\S)", text))
    return [text for text in (" ".join(part.split()) for part in parts) if 300 < len(text) < 1800]


def _prompt(kind: str, draw: random.Random, texts: list[str]) -> str:
    if kind == "translation":
        return draw.choice(["Translate German to English: ", "Translate this sentence into English: "]) + _german(draw)
    if kind == "summarization":
        asked = draw.choice(["Summarize: ", "Summarize: ", "Summarize this text in two sentences: "])
        return asked + " ".join(draw.choices(texts, k=draw.randint(1, 3)))
    if kind == "rag":
        return "\n\n".join([*draw.sample(texts, 2), draw.choice(QUESTIONS)])
    person, person2, person3 = draw.sample(WORDS["people"], 3)
    words = {"person": person, "person2": person2, "person3": person3}
    for name in ("topic", "place", "thing", "job"):
        words[name], words[f"{name}2"] = draw.sample(WORDS[f"{name}s"], 2)
    for name, of in {"country": "countries", "invention": "inventions", "event": "events", "task": "tasks"}.items():
        words[name] = draw.choice(WORDS[of])
    numbers = {"n": draw.randint(12, 60), "m": draw.randint(3, 12), "k": draw.randint(2, 9), "j": draw.randint(2, 6)}
    template: str = draw.choice(WORDS["templates"][kind])
    return template.format(language=draw.choice(WORDS["languages"]), **words, **numbers)


def _german(draw: random.Random) -> str:
    said = draw.choice(WORDS["verbs"]).format(it=draw.choice(WORDS["objects"]), place=draw.choice(WORDS["places"]))
    sentence = f"{draw.choice(WORDS['subjects'])} {said}{draw.choice(WORDS['ends'])}."
    return sentence + (f" {_german(draw)}" if draw.random() < 0.4 else "")


if __name__ == "__main__":
    number, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    sys.stdout.writelines(json.dumps(each) + "\n" for each in prompts(number, first))
