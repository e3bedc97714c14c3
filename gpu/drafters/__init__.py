"""What proposes tokens: one file per drafter, all of them alike to a method."""

from .base import Drafter
from .model import ModelDrafter
from .ngram import NgramModel
from .prompt_lookup import PromptLookup

__all__ = ["Drafter", "ModelDrafter", "NgramModel", "PromptLookup"]
