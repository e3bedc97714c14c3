"""The model card of look-ahead vectors: what they are, for which model, how to use them, what was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ..checkpoint.hub import is_repository

HEADER = """---
# license: choose one, the Hub shows it; the vectors are yours
library_name: pass-sampling
{base}tags:
- pass-sampling
- speculative-decoding
---

# Look-ahead vectors for {model}

{parts}, with which the model drafts its own next tokens and verifies them (PaSS,
[arXiv 2311.13581](https://arxiv.org/abs/2311.13581)). The text has exactly the distribution that the model gives it
without them. They take `pip install` of pass-sampling with its extra `gpu`, and"""
IN_GENERATE = """
```python
from pass_sampling.gpu import pass_generate
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained({model!r}), AutoModelForCausalLM.from_pretrained({model!r})
inputs = tokenizer("def main():", return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_new_tokens=64, custom_generate=pass_generate, lookahead={place!r})
print(tokenizer.decode(output[0]))
```
"""
IN_PACKAGE = """
```python
from pass_sampling.gpu import PaSSOneCall, LookAhead, SamplingConfig, generate, load_model
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({model!r})
method = PaSSOneCall(load_model({model!r}), LookAhead.from_pretrained({place!r}), SamplingConfig(temperature=0.8))
print(generate(method, tokenizer("def main():").input_ids, 64, decode=tokenizer.decode).text)
```
"""
ON_THE_COMMAND_LINE = """
Where the model is a Llama, Mistral, Qwen2 or Qwen3, the command line takes them as well:

```
pass-sampling generate --model {shell_model} --lookahead {shell_place}{method} --prompt "def main():"
```
"""
MEASURED = """
## Measured

Expected acceptance of each draft on held-out text, and the tokens of a pass that verifies and drafts at once, were each
draft accepted independently of the others.
"""
SAMPLINGS = {"": "as trained for", "greedy": "greedy", "temperature_1": "at temperature 1"}
WHOSE = {"": "these", "random_": "random vectors", "fixed_token_": "a fixed token"}


def model_card(lookahead: Any, place: str) -> str:
    """Return the text of the README.md in a folder of look-ahead vectors.

    Args:
        lookahead: a LookAhead, whose module imports this one.
        place: the repository or folder that they will be loaded from.
    """
    model = " ".join(lookahead.base_model.split())
    words = {"model": model or "MODEL", "place": place, "method": _method(lookahead)}
    words |= {f"shell_{name}": shlex.quote(words[name]) for name in ("model", "place")}
    text = HEADER.format(
        base=f"base_model: {model}\n" if is_repository(model) else "",
        model=f"`{model}`" if model else "a model",
        parts=_parts(lookahead),
    )
    text += (IN_GENERATE if lookahead.adapter is None else IN_PACKAGE).format(**words)
    return text + ON_THE_COMMAND_LINE.format(**words) + _measured(lookahead.training)


def _method(lookahead: Any) -> str:
    """Return the option that vectors with other parts need: without it, `generate` refuses them."""
    if lookahead.head is not None and lookahead.head.kind == "block":
        return " --method blockwise"
    return "" if lookahead.adapter is None and lookahead.head is None else " --method pass-one-call"


def _parts(lookahead: Any) -> str:
    parts = [f"{lookahead.num_lookahead} vectors of {lookahead.hidden_size} numbers"]
    if lookahead.adapter is not None:
        parts.append(f"an adapter of rank {lookahead.adapter.rank}")
    if lookahead.head is not None:
        kind = "block heads" if lookahead.head.kind == "block" else "a head"
        parts.append(f"{kind} of width {lookahead.head.width}")
    return ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]


def _measured(training: Mapping[str, Any]) -> str:
    """Return tables of the expected acceptance in a training record, if it has any."""
    held_out: Any = training.get("held_out")
    tables = ""
    for sampling, said in SAMPLINGS.items() if isinstance(held_out, Mapping) else ():
        found = held_out.get(sampling) if sampling else held_out
        rows = {who: numbers for kind, who in WHOSE.items() if (numbers := _numbers(found, kind))}
        if rows:
            count = max(map(len, rows.values())) - 1
            tables += f"\n| {said} |" + "".join(f" draft {i + 1} |" for i in range(count)) + " tokens |\n"
            tables += "|---|" + "---|" * (count + 1) + "\n"
            tables += "".join(f"| {who} |" + "".join(f" {n:.3f} |" for n in row) + "\n" for who, row in rows.items())
    return MEASURED + tables if tables else ""


def _numbers(found: Any, kind: str) -> list[float]:
    """Return the rates and the tokens of one row; none if a record from elsewhere has other fields."""
    if not isinstance(found, Mapping):
        return []
    rates, tokens = found.get(f"{kind}acceptance"), found.get(f"{kind}expected_tokens")
    numbers = [*rates, tokens] if isinstance(rates, list | tuple) else []
    return numbers if all(isinstance(number, int | float) for number in numbers) else []
