"""Toy MDPs with closed-form facts.

Each module has one function that returns a frozen dataclass: `.mdp` (a `cpi.mdp.FiniteMDP`), `.pi` (the reference
policy [H, X, Y]), its parameters, and what is known of it in closed form as properties. Tests hold every closed form to
`cpi.exact`. `toy_mdps.gym` turns any of them into a Gymnasium environment.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cpi.mdp import FiniteMDP
from toy_mdps.combination_lock import CombinationLock, combination_lock
from toy_mdps.decision_points import DecisionPoints, decision_points
from toy_mdps.delayed_symptom import DelayedSymptom, delayed_symptom
from toy_mdps.garnet import Garnet, garnet
from toy_mdps.thought_tree import ThoughtTree, thought_tree
from toy_mdps.tightness import Tightness, tightness

__all__ = [
    "CombinationLock",
    "DecisionPoints",
    "DelayedSymptom",
    "Garnet",
    "ThoughtTree",
    "Tightness",
    "ToyMDP",
    "combination_lock",
    "decision_points",
    "delayed_symptom",
    "garnet",
    "thought_tree",
    "tightness",
]


class ToyMDP(Protocol):
    """What all of them offer."""

    @property
    def mdp(self) -> FiniteMDP: ...

    @property
    def pi(self) -> NDArray[np.float64]: ...
