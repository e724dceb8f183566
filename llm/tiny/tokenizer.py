r"""The tokenizer of the embedded model: whole words of the chain task, nothing else.

A text is cut, without remainder, into words of a closed vocabulary, so text -> ids -> text is the identity on every
text of the task. Numbers, step labels, function names, arguments such as ``(7)=``, ``</thought>`` and ``\boxed{`` are
one token each: a thought costs five tokens. Characters outside the vocabulary become ``<unk>``. There is no chat
template: prompts are bare.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm.tasks.chains import FUNCTIONS, VALUES
from llm.tasks.dials import MAX_STEPS
from llm.thoughts import THOUGHT_END, BarePrompts

__all__ = ["build_tokenizer", "vocabulary"]

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_LARGEST_NUMBER = 20


def vocabulary() -> list[str]:
    """All words, in the order of their ids."""
    numbers = [str(n) for n in range(_LARGEST_NUMBER + 1)] + [f" {x}" for x in range(VALUES)]
    arguments = [f"({x})=" for x in range(VALUES)]
    labels = [f"{space}{n}:" for space in (" ", "") for n in range(1, MAX_STEPS + 1)]
    marks = ["\n", "}", " \\boxed{", "\\boxed{", THOUGHT_END, "Push ", " through", BarePrompts().cue]
    return [*_SPECIAL, *marks, *numbers, *arguments, *labels, *FUNCTIONS]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer over `vocabulary()`; `save_pretrained` makes a folder that AutoTokenizer loads."""
    words = vocabulary()
    longest_first = sorted(words[len(_SPECIAL) :], key=lambda word: (-len(word), word))
    pattern = "|".join(map(re.escape, longest_first)) + r"|[\s\S]"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
