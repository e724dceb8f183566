"""The embedded default model: its tokenizer, the recipe that trains it, and the small checkpoint that it made."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CHECKPOINT"]

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The committed warm start: a Hugging Face folder for `AutoModelForCausalLM` and `AutoTokenizer`."""
