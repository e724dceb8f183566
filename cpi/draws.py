"""Counter-based uniforms: every random draw is a function of where it is made, and of nothing else.

A rollout is identified by its `DrawKey` (seed, step, prompt, phase, slot), and the draw at its t-th decision
or token is ``uniforms([key], T)[0, t]``. There is no generator whose state could be lost, so a resumed run, a run
on two processes and a run with another batch size make the same draws, and a table and a language model that sample
by inverse CDF from the same key take the same decisions.

The generator is SplitMix64 (Steele, Lea, Flood 2014), applied to a hashed key plus t times the golden gamma: each
key is a SplitMix64 stream of its own, and streams of all keys are evaluated at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["DrawKey", "inverse_cdf", "uniforms"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, order=True)
class DrawKey:
    """Where a random draw is made. All fields are non-negative integers below 2**63.

    `seed` of the run, `step` of training, `prompt` (its index in the data set), `phase` of the step (see
    `cpi.groups.Phase`) and `slot` (the running number of the rollout within prompt and phase).
    """

    seed: int
    step: int = 0
    prompt: int = 0
    phase: int = 0
    slot: int = 0

    def at(self, **changes: int) -> DrawKey:
        """The key with some coordinates changed: ``key.at(phase=Phase.RESET, slot=3)``."""
        return replace(self, **changes)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def uniforms(keys: Sequence[DrawKey], T: int, start: int = 0) -> NDArray[np.float64]:
    """Uniforms in [0, 1), shape [len(keys), T]: row i holds draws `start` .. `start + T - 1` of key i's stream."""
    fields = np.array([(k.seed, k.step, k.prompt, k.phase, k.slot) for k in keys], dtype=np.uint64).reshape(-1, 5)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64 by design
        state = np.zeros(len(keys), dtype=np.uint64)
        for column in fields.T:
            state = _mix(state + _GAMMA + column)
        counters = np.arange(start + 1, start + T + 1, dtype=np.uint64) * _GAMMA
        bits = _mix(state[:, None] + counters[None, :])
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def inverse_cdf(probs: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.int64]:
    """The index that `u` falls on, along the last axis of `probs`; -1 where `u` exceeds the total mass.

    `probs` [..., Y] may be sub-stochastic: the missing mass is the event "nothing is drawn" (-1). Rows whose mass is
    one up to rounding never give -1, and an index of probability zero is never drawn.
    """
    cdf = np.cumsum(probs, axis=-1)
    total = cdf[..., -1]
    u = np.where(np.isclose(total, 1.0, rtol=0.0, atol=1e-9), u * total, u)
    index = np.sum(cdf <= u[..., None], axis=-1)
    return np.where(index < probs.shape[-1], index, -1)
