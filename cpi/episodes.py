"""What a finished trajectory must offer to be re-entered.

A reset is a choice of prefix. In a table the prefix is a state (and the time at which it was reached); in a language
model it is the token ids of the prompt and of the thoughts so far. Everything that resets, `cpi.resets` and
`cpi.groups`, sees trajectories through this one protocol.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from cpi.draws import DrawKey

__all__ = ["Episode", "PrefixT_co"]

PrefixT_co = TypeVar("PrefixT_co", covariant=True)


@runtime_checkable
class Episode(Protocol[PrefixT_co]):
    """A finished trajectory of `num_decisions` decisions, numbered k = 0 .. num_decisions - 1.

    Example: a chain of three thoughts has num_decisions = 3; ``prefix(0)`` is the bare prompt, ``prefix(2)`` the
    prompt and the first two thoughts. If the first wrong thought is the second one (k = 1), the reset that repairs it
    is ``prefix(1)``: keep one thought, sample the second anew.
    """

    @property
    def num_decisions(self) -> int:
        """How many decisions were taken in all, those of the inherited prefix included."""
        ...

    @property
    def start(self) -> int:
        """How many leading decisions were inherited from a reset prefix (0 for a rollout from the prompt)."""
        ...

    @property
    def outcome(self) -> float:
        """The reward of the trajectory: the verifier's score in [0, 1], or the return in a table."""
        ...

    @property
    def generated(self) -> int:
        """What sampling this trajectory cost beyond its inherited prefix: tokens, or decisions in a table."""
        ...

    @property
    def key(self) -> DrawKey:
        """The key from which this trajectory was drawn."""
        ...

    def prefix(self, k: int) -> PrefixT_co:
        """The state before decision k: the first k decisions kept. Raises IndexError outside 0..num_decisions-1."""
        ...
