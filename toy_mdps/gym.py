"""Any finite-horizon MDP as a Gymnasium environment, so that other people's agents run on it.

An observation is the integer h * X + x, which is Markov; ``h, x = divmod(observation, X)``. An episode is terminated
after H actions, in an observation with h = H. A reset to a chosen state is
``env.reset(options={"h": 3, "x": 1})``: what resets in Gymnasium usually cannot do, and this package is about.

Needs Gymnasium (the extra `gym`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cpi.mdp import FiniteMDP, MDPError

try:
    import gymnasium
except ImportError as error:
    raise ImportError("toy_mdps.gym needs Gymnasium: pip install 'credit-resets[gym]'") from error

__all__ = ["TabularEnv"]


class TabularEnv(gymnasium.Env):  # type: ignore[misc]
    """`mdp` as an environment with discrete observations and actions."""

    def __init__(self, mdp: FiniteMDP) -> None:
        self.mdp = mdp
        self.observation_space = gymnasium.spaces.Discrete((mdp.H + 1) * mdp.X)
        self.action_space = gymnasium.spaces.Discrete(mdp.Y)
        self._h, self._x = mdp.H, 0

    def _observe(self) -> tuple[int, dict[str, Any]]:
        return self._h * self.mdp.X + self._x, {"h": self._h, "x": self._x}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Start at x ~ mu, or in the state that `options` names by "h" (0-based) and "x"."""
        super().reset(seed=seed)
        if options:
            h, x = int(options.get("h", 0)), int(options["x"])
            if not (0 <= h < self.mdp.H and 0 <= x < self.mdp.X):
                raise MDPError(f"h must lie in 0..{self.mdp.H - 1} and x in 0..{self.mdp.X - 1}, got {h} and {x}")
            self._h, self._x = h, x
        else:
            self._h, self._x = 0, int(self.np_random.choice(self.mdp.X, p=self.mdp.mu))
        return self._observe()

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if self._h >= self.mdp.H:
            raise MDPError("the episode is over (or has not begun): call reset first")
        reward = float(self.mdp.r[self._h, self._x, action])
        u = np.array([self.np_random.random()])
        self._x = int(self.mdp.sample_next(self._h, np.array([self._x]), np.array([action]), u)[0])
        self._h += 1
        observation, info = self._observe()
        return observation, reward, self._h == self.mdp.H, False, info
