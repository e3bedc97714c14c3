"""The drafters; `DRAFTERS` has all drafters by name.

A drafter that is registered here is found by the exact suite, the coupling tests, the benchmark and the command line.
There it is made from the size of the vocabulary, if it needs no files.
"""

from typing import Any

from .base import Drafter, ModelDrafter
from .first_of import FirstOf
from .ngram import NgramModel
from .prompt_lookup import PromptLookup

__all__ = ["DRAFTERS", "Drafter", "FirstOf", "ModelDrafter", "NgramModel", "PromptLookup"]

DRAFTERS: dict[str, Any] = {
    "draft-model": ModelDrafter,
    "prompt-lookup": PromptLookup,
    "ngram": NgramModel,
    "lookup-ngram": FirstOf,
}
