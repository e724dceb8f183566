"""Simulators: continue these prefixes to the end, all at once.

`Simulator` is the one thing that Algorithm 2 asks of a world. `TabularSimulator` is the exact one, on a `FiniteMDP`;
the language model's is `llm.generate.ThoughtSimulator`. Both sample by inverse CDF from counter-based uniforms
(`cpi.draws`), decision t of a rollout from draw t of its key, so that the same key gives the same decisions on both
sides.

`sample_paths` and `q_rollouts` are the plain vectorised rollouts of Algorithm 1, driven by a NumPy generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cpi.draws import DrawKey, inverse_cdf, uniforms
from cpi.episodes import Episode
from cpi.mdp import FiniteMDP, MDPError, check_policy

__all__ = [
    "Paths",
    "Simulator",
    "TabularEpisode",
    "TabularPrefix",
    "TabularSimulator",
    "q_rollouts",
    "sample_paths",
]

PrefixT_contra = TypeVar("PrefixT_contra", contravariant=True)
EpisodeT_co = TypeVar("EpisodeT_co", bound=Episode[Any], covariant=True)


class Simulator(Protocol[PrefixT_contra, EpisodeT_co]):
    """A world that can be re-entered at any prefix of a finished trajectory."""

    def continue_from(self, prefixes: Sequence[PrefixT_contra], keys: Sequence[DrawKey]) -> Sequence[EpisodeT_co]:
        """One finished trajectory per prefix, drawn from its key alone: in one batch, whatever else is in it."""
        ...


@dataclass(frozen=True)
class TabularPrefix:
    """A reset state: the first `k` decisions of a path. `states` has k + 1 entries, `actions` and `rewards` k."""

    states: tuple[int, ...]
    actions: tuple[int, ...] = ()
    rewards: tuple[float, ...] = ()

    @property
    def k(self) -> int:
        return len(self.actions)

    @classmethod
    def at(cls, x: int) -> TabularPrefix:
        """The start state x, before any decision."""
        return cls(states=(x,))


@dataclass(frozen=True)
class TabularEpisode:
    """A finished path x_1 y_1 ... x_H y_H with its rewards (a `cpi.episodes.Episode`)."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    rewards: tuple[float, ...]
    start: int
    key: DrawKey

    @property
    def num_decisions(self) -> int:
        return len(self.actions)

    @property
    def outcome(self) -> float:
        return float(sum(self.rewards))

    @property
    def generated(self) -> int:
        return self.num_decisions - self.start

    def prefix(self, k: int) -> TabularPrefix:
        if not 0 <= k < self.num_decisions:
            raise IndexError(f"cut {k} is outside 0..{self.num_decisions - 1}")
        return TabularPrefix(self.states[: k + 1], self.actions[:k], self.rewards[:k])


@dataclass(frozen=True)
class TabularSimulator:
    """Paths of policy `pi` [H, X, Y] in a finite MDP.

    Decision k takes draw k of the key for its action and draw H + k for the next state, so a deterministic MDP and a
    language model with the same policy take the same decisions from the same key.
    """

    mdp: FiniteMDP
    pi: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.pi.shape != (self.mdp.H, self.mdp.X, self.mdp.Y):
            raise ValueError(f"pi must have shape {(self.mdp.H, self.mdp.X, self.mdp.Y)}, got {self.pi.shape}")

    def continue_from(self, prefixes: Sequence[TabularPrefix], keys: Sequence[DrawKey]) -> list[TabularEpisode]:
        H, N = self.mdp.H, len(prefixes)
        u_NT = uniforms(keys, 2 * H)
        start_N = np.array([p.k for p in prefixes], dtype=np.int64)
        x_NH = np.zeros((N, H), dtype=np.int64)
        y_NH = np.zeros((N, H), dtype=np.int64)
        x_N = np.array([p.states[-1] for p in prefixes], dtype=np.int64)
        for h in range(H):
            live = start_N <= h
            y = inverse_cdf(self.pi[h, x_N[live]], u_NT[live, h])
            x_NH[live, h], y_NH[live, h] = x_N[live], y
            if h + 1 < H:
                x_N[live] = inverse_cdf(self.mdp.next_state_probs(h, x_N[live], y), u_NT[live, H + h])
        r_NH = self.mdp.r[np.arange(H), x_NH, y_NH]
        return [
            TabularEpisode(
                states=prefix.states[:-1] + tuple(x[prefix.k :].tolist()),
                actions=prefix.actions + tuple(y[prefix.k :].tolist()),
                rewards=prefix.rewards + tuple(r[prefix.k :].tolist()),
                start=prefix.k,
                key=key,
            )
            for prefix, key, x, y, r in zip(prefixes, keys, x_NH, y_NH, r_NH, strict=True)
        ]


@dataclass(frozen=True)
class Paths:
    """`n` paths as arrays: states x_NH, actions y_NH, rewards r_NH, each [n, H]."""

    x_NH: NDArray[np.int64]
    y_NH: NDArray[np.int64]
    r_NH: NDArray[np.float64]

    @property
    def returns_N(self) -> NDArray[np.float64]:
        return np.asarray(self.r_NH.sum(axis=1))


def _pick(cdf_NS: NDArray[np.float64], u_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Inverse CDF for rows whose last entry counts as 1 whatever its rounding."""
    return np.asarray((cdf_NS[:, :-1] <= u_N[:, None]).sum(axis=1))


def sample_paths(mdp: FiniteMDP, pi: NDArray[np.float64], n: int, rng: np.random.Generator) -> Paths:
    """`n` paths from mu under `pi` [H, X, Y], all at once; no loop over paths."""
    pi = check_policy(mdp, pi)
    x_N = rng.choice(mdp.X, size=n, p=mdp.mu)
    x_NH = np.empty((n, mdp.H), dtype=np.int64)
    y_NH = np.empty((n, mdp.H), dtype=np.int64)
    r_NH = np.empty((n, mdp.H), dtype=np.float64)
    for h in range(mdp.H):
        y_N = _pick(pi[h].cumsum(axis=-1)[x_N], rng.random(n))
        x_NH[:, h], y_NH[:, h], r_NH[:, h] = x_N, y_N, mdp.r[h, x_N, y_N]
        if h + 1 < mdp.H:
            x_N = mdp.sample_next(h, x_N, y_N, rng.random(n))
    return Paths(x_NH, y_NH, r_NH)


def q_rollouts(
    mdp: FiniteMDP,
    pi: NDArray[np.float64],
    h_N: NDArray[np.int64],
    x_N: NDArray[np.int64],
    y_N: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """One unbiased draw of Q_h(x, y) per row: take y in x at time h (0-based), then follow `pi` to the end."""
    pi = check_policy(mdp, pi)
    for name, index_N, size in (("h", h_N, mdp.H), ("x", x_N, mdp.X), ("y", y_N, mdp.Y)):
        if index_N.size and not 0 <= index_N.min() <= index_N.max() < size:
            raise MDPError(f"{name} must lie in 0..{size - 1}, got {index_N.min()}..{index_N.max()}")
    x_N, returns_N = x_N.copy(), mdp.r[h_N, x_N, y_N].astype(np.float64)
    action_N = y_N.copy()
    for h in range(int(h_N.min(initial=mdp.H)), mdp.H - 1):
        live = np.flatnonzero(h_N <= h)
        x = mdp.sample_next(h, x_N[live], action_N[live], rng.random(live.size))
        y = _pick(pi[h + 1].cumsum(axis=-1)[x], rng.random(live.size))
        x_N[live], action_N[live] = x, y
        returns_N[live] += mdp.r[h + 1, x, y]
    return returns_N
