"""Continue a text with a model, by plain decoding or with drafts; all ways have exactly the same distribution.

  pass-sampling generate --prompt 'def main():'
  pass-sampling generate --model FOLDER --lookahead VECTORS --prompt-file story.txt --temperature 0.7 --json
  pass-sampling generate --model org/name --chat --interactive

With --interactive every line of standard input is a prompt, and one that ends in a backslash goes on in the next.
Ctrl-C ends a text, or the program where none is being written, as /quit does and the end of the input.

The new text goes to standard output as it is accepted, a summary to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chat import Conversation, add_chat, check_chat
from .drafting import add_drafting, check_drafting
from .methods import METHODS, method_for, method_name, options_of
from .options import add_json, add_machine, add_model, add_sampling, open_model, sampling_of
from .planned import add_plan, planned
from .text import check_unicode, decoder_of, encode_prompt, load_tokenizer

if TYPE_CHECKING:
    from pass_sampling.reference.record import Generation

    from ..methods import Method

HELP = "continue a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    add_model(parser)
    parser.add_argument(
        "--method",
        type=method_name,
        metavar="NAME",
        help=f"how to decode, by the same distribution: {', '.join(METHODS)}; default: what is the fastest here, see "
        "pass-sampling plan",
    )
    add_drafting(parser)
    add_plan(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="a UTF-8 file with the text to continue")
    prompt.add_argument("--interactive", action="store_true", help="read prompts from standard input, line by line")
    add_chat(parser)
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="length of the new text; default: %(default)s"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        dest="stop_strings",
        metavar="TEXT",
        help="end where this text or special token appears, which is left out; may be repeated; default: only the stop "
        "strings of the model's generation_config.json",
    )
    add_sampling(parser)
    add_machine(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Load, generate, print."""
    from pass_sampling.reference.config import check_integer
    from pass_sampling.reference.ending import Ending

    from ..generation import generate
    from ..methods import Autoregressive
    from .interactive import talk
    from .streaming import SourceStream

    check_integer("max_new_tokens", arguments.max_new_tokens, 1, 2**30)
    check_drafting(arguments)
    check_chat(arguments)
    stops = [check_unicode("--stop", stop) for stop in arguments.stop_strings]
    text = "" if arguments.interactive else _prompt(arguments)
    sampling = sampling_of(arguments)
    model = open_model(arguments)
    tokenizer = load_tokenizer(arguments.model)
    conversation = Conversation(tokenizer, arguments.model, arguments.system) if arguments.chat else None
    if arguments.interactive:
        prompt = [0]  # stands for the first one
    elif conversation is not None:
        prompt, _ = conversation.tokens(text)
    else:
        prompt = encode_prompt(tokenizer, text, "--prompt" if arguments.prompt_file is None else arguments.prompt_file)
    decode = decoder_of(tokenizer)
    stops += model.stop_strings
    ending = Ending(arguments.max_new_tokens, model.eos_token_ids, stops, decode)
    plan, arguments = planned(arguments, model, sampling, lambda: Autoregressive(model, sampling).start(prompt, ending))
    method_name, method = method_for(arguments, model, sampling)
    how = method_name + (", planned" if plan else "")
    how += f", LOSSY: lenience {arguments.lenience:g}" if (arguments.lenience or 1) < 1 else ""
    if arguments.interactive:
        talk(method, how, tokenizer, ending, conversation, arguments)
        return
    shown = SourceStream(ending, plain=True, prompt=prompt)
    started = time.perf_counter()
    result = generate(
        method,
        prompt,
        arguments.max_new_tokens,
        stop_strings=stops,
        decode=decode,
        seed=arguments.seed,
        callback=None if arguments.json else shown.record,
    )
    seconds = time.perf_counter() - started
    if arguments.json:
        found = summary(method_name, result, seconds) | _setting(arguments, method, text)
        found["plan"] = plan and asdict(plan)
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    shown.finish(result.text or "")
    print(
        f"{len(result.tokens)} tokens in {result.num_forward_passes} passes, {result.tokens_per_forward:.2f} per pass, "
        f"{seconds:.2f} s ({len(result.tokens) / seconds:.0f} tokens per second), method {how}",
        file=sys.stderr,
    )


def summary(method: str, result: Generation, seconds: float) -> dict[str, Any]:
    """Return what came out and what it cost, as plain values."""
    rate = result.draft_acceptance_rate
    return {
        "text": result.text,
        "tokens": list(result.tokens),
        "end": result.end,
        "method": method,
        "num_forward_passes": result.num_forward_passes,
        "num_draft_passes": result.num_draft_passes,
        "num_positions": result.num_positions,
        "tokens_per_forward": result.tokens_per_forward,
        "seconds": seconds,
        "num_drafts": result.num_drafts,
        "num_draft_tokens": result.num_draft_tokens,
        "num_accepted_tokens": result.num_accepted_tokens,
        "draft_acceptance_rate": rate if rate == rate else None,
        "accepted_per_position": list(result.accepted_per_position),
        "sources": list(result.sources),
        "log_prob": sum(result.log_probs),
    }


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return check_unicode("--prompt", arguments.prompt)
    path: Path = arguments.prompt_file
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, expected a text file") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}), expected a text file") from None


def _setting(arguments: argparse.Namespace, method: Method, prompt: str) -> dict[str, Any]:
    model = method.model
    return {
        "prompt": prompt,
        "chat": arguments.chat,
        "system": arguments.system,
        "model": model.name,
        "verify": getattr(method, "rule", None),
        "options": options_of(method),
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "seed": arguments.seed,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }
