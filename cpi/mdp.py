"""Finite-horizon Markov decision processes, validated once.

An MDP (X, Y, P, r, H, mu) has states x, actions y, kernels P_h(x'|x, y), rewards r_h(x, y) in [0, R_max] and a start
law mu. Time is 0-based in code: h = 0 .. H - 1 stands for the h = 1 .. H of the text. The game ends after the action
at h = H - 1, so the last kernel is never used; it is kept so that all arrays share their time axis.

Everything exact (`cpi.exact`) touches a kernel through two operations only: `expect`, one backward step
(V_{h+1} -> E[V_{h+1}(x') | x, y]), and `push`, one forward step (weights on (x, y) -> weights on x'). They are what
differs between a dense kernel, a sparse one, and a stack of many small MDPs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

__all__ = ["AnyMDP", "FiniteMDP", "MDPError", "MDPStack", "check_policy"]

Float: TypeAlias = NDArray[np.float64]
SUM_TOLERANCE = 1e-9  # on the sum of a probability row; rounding of a row of 10^4 entries stays below 1e-11


class MDPError(ValueError):
    """An MDP, a policy or a parameter that cannot be right; the message says what to change."""


def _frozen(values: ArrayLike, name: str) -> Float:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MDPError(f"{name} must be an array of numbers: {error}") from None
    view = array.view()
    view.flags.writeable = False
    return view


def _check_rows(rows: Float, name: str) -> None:
    """Rows along the last axis must be probabilities."""
    low = rows.min(initial=0.0)
    # A product with ones is several times faster than a sum along a short last axis.
    off = (rows.reshape(-1, rows.shape[-1]) @ np.ones(rows.shape[-1])) - 1.0
    np.abs(off, out=off)
    if low >= 0 and off.max(initial=0.0) <= SUM_TOLERANCE:  # both are false if there is a NaN
        return
    if not np.isfinite(rows).all():
        raise MDPError(f"{name} holds NaN or infinity")
    if low < 0:
        raise MDPError(f"{name} holds a negative probability ({low:.3g})")
    where = tuple(int(i) for i in np.unravel_index(off.argmax(), rows.shape[:-1]))
    row = f"the row at {where}" if where else "it"
    raise MDPError(f"{name} must sum to one along its last axis; {row} sums to {rows[where].sum():.6g}")


def _check_rewards(r: Float, R_max: Float) -> None:
    """`r` [..., H, X, Y] in [0, R_max [...]]."""
    if not np.isfinite(r).all():
        raise MDPError("r holds NaN or infinity")
    if not (np.isfinite(R_max).all() and (R_max > 0).all()):
        raise MDPError(f"R_max must be positive and finite, got {R_max}")
    if r.min() < 0 or (r.max(axis=(-3, -2, -1)) > R_max).any():
        raise MDPError(f"rewards must lie in [0, R_max]; they span [{r.min():.6g}, {r.max():.6g}], R_max is {R_max}")


def _default_R_max(r: Float) -> Float:
    """The largest reward of each MDP, 1 if it has none: r [..., H, X, Y] -> [...]."""
    highest = r.max(axis=(-3, -2, -1))
    return np.where(highest > 0, highest, 1.0)


def _check_sizes(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise MDPError(f"{name} must be at least 1, got {size}")


@dataclass(frozen=True)
class _SamplingTable:
    """The support of all rows of one kernel, as one sorted array: row index + CDF.

    A draw is one binary search over it. Adding the row index costs log2(rows) of the 53 bits of a uniform.
    """

    edges: Float
    targets: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @classmethod
    def of(cls, kernel: Any) -> _SamplingTable:
        support: Any = sparse.csr_array(kernel, copy=True)
        support.eliminate_zeros()
        starts = support.indptr.astype(np.int64)
        total = np.concatenate([[0.0], np.cumsum(support.data)])
        rows = np.repeat(np.arange(support.shape[0]), np.diff(starts))
        edges = np.clip(total[1:] - total[starts[:-1]][rows], 0.0, 1.0) + rows
        last = starts[1:] - 1
        edges[last] = np.arange(support.shape[0]) + 1.0
        return cls(edges, support.indices.astype(np.int64), starts[:-1], last)

    def draw(self, row_N: NDArray[np.int64], u_N: Float) -> NDArray[np.int64]:
        position = np.searchsorted(self.edges, row_N + u_N, side="right")
        return self.targets[np.clip(position, self.first[row_N], self.last[row_N])]


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """One finite-horizon MDP.

    P: dense [H, X, Y, X], or a sequence of H SciPy sparse matrices [X * Y, X] whose row x * Y + y is P_h(.|x, y).
    r: rewards [H, X, Y] in [0, R_max]. mu: start law [X]. R_max defaults to the largest reward (1 if all are zero).

    A stationary dense kernel is best given as `FiniteMDP.stationary`: its P is a view that stores the kernel once.
    Raises MDPError for wrong shapes, NaN, negative probabilities, rows that do not sum to one, rewards out of range.
    """

    P: Any
    r: Float
    mu: Float
    R_max: float = None  # type: ignore[assignment]  # filled in by __post_init__
    _tables: dict[int, _SamplingTable] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        r, mu = _frozen(self.r, "r"), _frozen(self.mu, "mu")
        if r.ndim != 3:
            raise MDPError(f"r must have shape [H, X, Y], got {r.shape}")
        H, X, Y = r.shape
        _check_sizes({"H": H, "X": X, "Y": Y})
        if mu.shape != (X,):
            raise MDPError(f"mu must have shape {(X,)}, got {mu.shape}")
        _check_rows(mu, "mu")
        R_max = float(_default_R_max(r)) if self.R_max is None else float(self.R_max)
        _check_rewards(r, np.array(R_max))
        is_dense = isinstance(self.P, np.ndarray) or not any(sparse.issparse(kernel) for kernel in self.P)
        object.__setattr__(self, "P", _dense_kernels(self.P, H, X, Y) if is_dense else _csr_kernels(self.P, H, X, Y))
        object.__setattr__(self, "r", r)
        object.__setattr__(self, "mu", mu)
        object.__setattr__(self, "R_max", R_max)

    @classmethod
    def stationary(
        cls, P_XYX: ArrayLike, r_XY: ArrayLike, mu: ArrayLike, H: int, R_max: float | None = None
    ) -> FiniteMDP:
        """The same dense kernel [X, Y, X] and rewards [X, Y] at each of H steps, stored once."""
        _check_sizes({"H": H})
        P, r = np.asarray(P_XYX, dtype=np.float64), np.asarray(r_XY, dtype=np.float64)
        return cls(np.broadcast_to(P, (H, *P.shape)), np.broadcast_to(r, (H, *r.shape)), mu, R_max)  # type: ignore[arg-type]

    @classmethod
    def sparse(cls, P: Any, r_XY: ArrayLike, mu: ArrayLike, H: int, R_max: float | None = None) -> FiniteMDP:
        """The same sparse kernel [X * Y, X] and rewards [X, Y] at each of H steps. Time-dependent: pass a list as P."""
        _check_sizes({"H": H})
        r = np.asarray(r_XY, dtype=np.float64)
        return cls([sparse.csr_array(P)] * H, np.broadcast_to(r, (H, *r.shape)), mu, R_max)  # type: ignore[arg-type]

    @property
    def H(self) -> int:
        return int(self.r.shape[0])

    @property
    def X(self) -> int:
        return int(self.r.shape[1])

    @property
    def Y(self) -> int:
        return int(self.r.shape[2])

    @property
    def is_sparse(self) -> bool:
        return isinstance(self.P, tuple)

    @property
    def is_stationary(self) -> bool:
        """Whether all steps share one stored kernel. (Equal kernels that are stored apart do not count.)"""
        if self.is_sparse:
            return all(kernel is self.P[0] for kernel in self.P)
        return self.H == 1 or self.P.strides[0] == 0

    def _rows(self, h: int) -> Any:
        """P_h as a matrix [X * Y, X], dense or CSR; no copy."""
        return self.P[h] if self.is_sparse else self.P[h].reshape(-1, self.X)

    def expect(self, h: int, V: Float) -> Float:
        """E[V(x') | x, y] under P_h: V [..., X] -> [..., X, Y]."""
        rows = self._rows(h)
        flat = rows @ V if V.ndim == 1 else (rows @ V.reshape(-1, self.X).T).T
        return np.asarray(flat).reshape(*V.shape[:-1], self.X, self.Y)

    def push(self, h: int, w: Float) -> Float:
        """Mass on (x, y), moved by P_h: w [..., X, Y] -> [..., X]."""
        flat = w.reshape(*w.shape[:-2], self.X * self.Y)
        if not self.is_sparse:
            return np.asarray(flat @ self._rows(h))
        return np.asarray((self._rows(h).T @ flat.reshape(-1, flat.shape[-1]).T).T).reshape(*w.shape[:-2], self.X)

    def next_state_probs(self, h: int, x_N: NDArray[np.int64], y_N: NDArray[np.int64]) -> Float:
        """Rows P_h(.|x, y) as a dense array [N, X]."""
        rows = self._rows(h)[np.asarray(x_N) * self.Y + np.asarray(y_N)]
        return np.asarray(rows.toarray() if self.is_sparse else rows)

    def sample_next(self, h: int, x_N: NDArray[np.int64], y_N: NDArray[np.int64], u_N: Float) -> NDArray[np.int64]:
        """Next states [N] by inverse CDF from uniforms u_N in [0, 1); a state of probability zero is never drawn.

        The first call for a kernel builds a table of its support, which is kept.
        """
        which = id(self.P[h]) if self.is_sparse else (0 if self.is_stationary else h)
        if which not in self._tables:
            self._tables[which] = _SamplingTable.of(self._rows(h))
        return self._tables[which].draw(x_N * self.Y + y_N, u_N)


def _dense_kernels(P: ArrayLike, H: int, X: int, Y: int) -> Float:
    P = _frozen(P, "P")
    if P.shape != (H, X, Y, X):
        raise MDPError(f"P must have shape [H, X, Y, X] = {(H, X, Y, X)} to go with r, got {P.shape}")
    if P.strides[0] == 0:
        _check_rows(P[0], "P")
        return np.broadcast_to(np.ascontiguousarray(P[0]), P.shape)
    _check_rows(P, "P")
    return np.ascontiguousarray(P)


def _csr_kernels(P: Iterable[Any], H: int, X: int, Y: int) -> tuple[Any, ...]:
    given = list(P)
    if len(given) != H:
        raise MDPError(f"P must be a sequence of H = {H} sparse kernels, got {len(given)}")
    checked: dict[int, Any] = {}
    for h, kernel in enumerate(given):
        if id(kernel) not in checked:
            checked[id(kernel)] = _csr_kernel(kernel, h, X, Y)
    return tuple(checked[id(kernel)] for kernel in given)


def _csr_kernel(kernel: Any, h: int, X: int, Y: int) -> Any:
    is_sparse: bool = sparse.issparse(kernel)
    if not is_sparse or kernel.shape != (X * Y, X):
        raise MDPError(f"sparse kernel {h} must be a SciPy sparse matrix of shape [X * Y, X] = {(X * Y, X)}")
    rows: Any = sparse.csr_array(kernel).astype(np.float64)
    if not np.isfinite(rows.data).all():
        raise MDPError(f"sparse kernel {h} holds NaN or infinity")
    if rows.data.min(initial=0.0) < 0:
        raise MDPError(f"sparse kernel {h} holds a negative probability ({rows.data.min():.3g})")
    sums = np.asarray(rows.sum(axis=1)).ravel()
    if np.abs(sums - 1.0).max() > SUM_TOLERANCE:
        worst = int(np.abs(sums - 1.0).argmax())
        raise MDPError(f"the rows of sparse kernel {h} must sum to one; row {worst} sums to {sums[worst]:.6g}")
    return rows


@dataclass(frozen=True, eq=False)
class MDPStack:
    """B dense MDPs of equal H, X, Y, handled at once: each array has a leading axis B.

    P [B, H, X, Y, X], r [B, H, X, Y], mu [B, X], R_max [B]. ``stack[b]`` is the b-th one as a FiniteMDP.
    """

    P: Float
    r: Float
    mu: Float
    R_max: Float = None  # type: ignore[assignment]  # filled in by __post_init__
    _rows: Float = field(init=False, repr=False)  # [H, B, X * Y, X]: the kernels of one step lie together in memory

    def __post_init__(self) -> None:
        P, r, mu = _frozen(self.P, "P"), _frozen(self.r, "r"), _frozen(self.mu, "mu")
        if r.ndim != 4:
            raise MDPError(f"r must have shape [B, H, X, Y], got {r.shape}")
        B, H, X, Y = r.shape
        _check_sizes({"B": B, "H": H, "X": X, "Y": Y})
        if P.shape != (B, H, X, Y, X):
            raise MDPError(f"P must have shape [B, H, X, Y, X] = {(B, H, X, Y, X)} to go with r, got {P.shape}")
        if mu.shape != (B, X):
            raise MDPError(f"mu must have shape {(B, X)}, got {mu.shape}")
        _check_rows(P, "P")
        _check_rows(mu, "mu")
        R_max = _default_R_max(r) if self.R_max is None else np.asarray(self.R_max, dtype=np.float64)
        R_max = np.array(np.broadcast_to(R_max, (B,)))
        _check_rewards(r, R_max)
        rows = np.ascontiguousarray(np.moveaxis(P, 1, 0))
        rows.flags.writeable = False
        object.__setattr__(self, "_rows", rows.reshape(H, B, X * Y, X))
        object.__setattr__(self, "P", np.moveaxis(rows, 0, 1))
        object.__setattr__(self, "r", r)
        object.__setattr__(self, "mu", mu)
        object.__setattr__(self, "R_max", R_max)

    @classmethod
    def of(cls, mdps: Sequence[FiniteMDP]) -> MDPStack:
        """Stack dense MDPs of equal shape."""
        if not mdps:
            raise MDPError("a stack needs at least one MDP")
        if any(mdp.is_sparse for mdp in mdps):
            raise MDPError("a stack holds dense MDPs only; evaluate sparse ones one by one")
        if len({mdp.r.shape for mdp in mdps}) > 1:
            raise MDPError("all MDPs of a stack must have the same H, X and Y")
        P, r, mu, R_max = (np.stack([getattr(m, name) for m in mdps]) for name in ("P", "r", "mu", "R_max"))
        return cls(P, r, mu, R_max)

    def __len__(self) -> int:
        return self.B

    def __getitem__(self, b: int) -> FiniteMDP:
        return FiniteMDP(self.P[b], self.r[b], self.mu[b], float(self.R_max[b]))

    @property
    def B(self) -> int:
        return int(self.r.shape[0])

    @property
    def H(self) -> int:
        return int(self.r.shape[1])

    @property
    def X(self) -> int:
        return int(self.r.shape[2])

    @property
    def Y(self) -> int:
        return int(self.r.shape[3])

    def expect(self, h: int, V: Float) -> Float:
        """E[V(x') | x, y] under P_h: V [B, X] -> [B, X, Y]."""
        return np.asarray(self._rows[h] @ V[..., None]).reshape(self.B, self.X, self.Y)

    def push(self, h: int, w: Float) -> Float:
        """Mass on (x, y), moved by P_h: w [B, X, Y] -> [B, X], or [B, M, X, Y] -> [B, M, X]."""
        flat = w.reshape(self.B, -1, self.X * self.Y)
        return np.asarray(flat @ self._rows[h]).reshape(*w.shape[:-2], self.X)


AnyMDP: TypeAlias = FiniteMDP | MDPStack


def check_policy(mdp: AnyMDP, pi: ArrayLike, name: str = "pi") -> Float:
    """`pi` as a float64 array whose last axes are [H, X, Y] and whose rows are probabilities; MDPError otherwise.

    For a FiniteMDP `pi` may have leading axes: many policies at once. For a stack its first axis is B.
    """
    policy = np.asarray(pi, dtype=np.float64)
    expected = mdp.r.shape
    shape = policy.shape if isinstance(mdp, MDPStack) else policy.shape[-3:]
    if shape != expected:
        raise MDPError(f"{name} must have shape {expected}, got {policy.shape}")
    _check_rows(policy[:1] if policy.strides[0] == 0 else policy, name)
    return policy
