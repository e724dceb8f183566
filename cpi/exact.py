"""Exact values, advantages, occupancy and returns: one pass backward, one forward.

    Q_h(x, y) = r_h(x, y) + E[V_{h+1}(x')],   V_h(x) = E_{y~pi} Q_h(x, y),   A = Q - V,   V_H = 0
    d_0 = mu,   d_{h+1}(x') = sum_{x, y} d_h(x) pi_h(y|x) P_h(x'|x, y),   J = E_mu V_0

All functions take a `FiniteMDP` (and then policies [H, X, Y], or [..., H, X, Y] for many at once) or an `MDPStack`
(policies [B, H, X, Y]); every result carries the same leading axes. Values are of order H * R_max and errors of order
H * machine epsilon relative to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpi.mdp import AnyMDP, MDPError, MDPStack, check_policy

__all__ = [
    "Evaluation",
    "advantages",
    "evaluate",
    "expected_return",
    "greedy",
    "mixture",
    "occupancy",
    "optimal",
    "policy_advantage",
    "return_polynomial",
    "state_values",
    "values",
]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What there is to know of one policy. V [..., H+1, X], Q [..., H, X, Y], d [..., H, X], J [...]; A = Q - V."""

    V: Float
    Q: Float
    d: Float
    J: Float

    @cached_property
    def A(self) -> Float:
        """Advantages [..., H, X, Y]."""
        return self.Q - self.V[..., :-1, :, None]


def evaluate(mdp: AnyMDP, pi: ArrayLike) -> Evaluation:
    """Values, advantages, occupancy and return of policy `pi`."""
    policy = check_policy(mdp, pi)
    P_pi = _state_kernel(mdp, policy)
    V, Q = _values(mdp, policy, P_pi)
    return Evaluation(V=V, Q=Q, d=_occupancy(mdp, policy, P_pi), J=_start(mdp, V))


def values(mdp: AnyMDP, pi: ArrayLike) -> tuple[Float, Float]:
    """(V [..., H+1, X], Q [..., H, X, Y]) of policy `pi`."""
    policy = check_policy(mdp, pi)
    return _values(mdp, policy, _state_kernel(mdp, policy))


def advantages(mdp: AnyMDP, pi: ArrayLike) -> Float:
    """A = Q - V, [..., H, X, Y]."""
    V, Q = values(mdp, pi)
    return Q - V[..., :-1, :, None]


def occupancy(mdp: AnyMDP, pi: ArrayLike) -> Float:
    """State laws d_h [..., H, X] of policy `pi`."""
    policy = check_policy(mdp, pi)
    return _occupancy(mdp, policy, _state_kernel(mdp, policy))


def state_values(mdp: AnyMDP, pi: ArrayLike) -> Float:
    """V [..., H+1, X] alone: cheaper than `values` when neither the kernel nor the policy depends on time."""
    policy = check_policy(mdp, pi)
    P_pi = _state_kernel(mdp, policy)
    return _values(mdp, policy, None)[0] if P_pi is None else _stationary_values(mdp, policy, P_pi)


def expected_return(mdp: AnyMDP, pi: ArrayLike) -> Float:
    """J(pi) = E[sum_h r_h]: a scalar array, or one entry per MDP or policy."""
    return _start(mdp, state_values(mdp, pi))


def _start(mdp: AnyMDP, V: Float) -> Float:
    return np.asarray((V[..., 0, :] * mdp.mu).sum(axis=-1))


def _state_kernel(mdp: AnyMDP, pi: Float) -> Float | None:
    """P^pi(x'|x) [X, X] if neither the dense kernel nor the one policy depends on time, else None.

    Forming it costs about one step on the kernel, and then each of 2 H steps costs card(Y) times less. (A sparse kernel
    under a policy has hardly fewer entries than the kernel itself, so nothing would be gained there.)
    """
    if isinstance(mdp, MDPStack) or mdp.is_sparse or pi.ndim > 3 or mdp.H < 3 or not mdp.is_stationary:
        return None
    first = pi[0]
    if pi.strides[0] != 0 and not (np.array_equal(first, pi[-1]) and (pi == first).all()):
        return None
    x, y = np.arange(mdp.X), first.argmax(axis=-1)
    if (first[x, y] == 1).all():
        return np.asarray(mdp.P[0][x, y])
    return np.asarray((first[:, None, :] @ mdp.P[0])[:, 0, :])


def _stationary_values(mdp: AnyMDP, pi: Float, P_pi: Float) -> Float:
    V = np.zeros((mdp.H + 1, mdp.X))
    r = mdp.r[:1] if mdp.r.strides[0] == 0 else mdp.r
    r_HX = np.broadcast_to(np.einsum("xy,hxy->hx", pi[0], r), (mdp.H, mdp.X))
    V[-2] = r_HX[-1]
    for h in range(mdp.H - 2, -1, -1):
        np.dot(P_pi, V[h + 1], out=V[h])
        V[h] += r_HX[h]
    return V


def _values(mdp: AnyMDP, pi: Float, P_pi: Float | None) -> tuple[Float, Float]:
    lead = pi.shape[:-3]
    if P_pi is not None:  # Q of all steps is one product then
        V = _stationary_values(mdp, pi, P_pi)
        Q = mdp.expect(0, V[1:])
        Q += mdp.r
        return V, Q
    V_H, Q_H = np.zeros((mdp.H + 1, *lead, mdp.X)), np.empty((mdp.H, *lead, mdp.X, mdp.Y))
    for h in range(mdp.H - 1, -1, -1):
        _bellman(mdp, h, V_H[h + 1], out=Q_H[h])
        np.einsum("...y,...y->...", pi[..., h, :, :], Q_H[h], out=V_H[h])
    return np.moveaxis(V_H, 0, -2), np.moveaxis(Q_H, 0, -3)


def _bellman(mdp: AnyMDP, h: int, V_next: Float, out: Float) -> None:
    """Q_h [..., X, Y] from V_{h+1} [..., X]."""
    if h == mdp.H - 1:
        out[...] = mdp.r[..., h, :, :]
    else:
        np.add(mdp.r[..., h, :, :], mdp.expect(h, V_next), out=out)


def _occupancy(mdp: AnyMDP, pi: Float, P_pi: Float | None) -> Float:
    d_H = np.empty((mdp.H, *pi.shape[:-3], mdp.X))
    d_H[0] = mdp.mu
    for h in range(mdp.H - 1):
        d_H[h + 1] = mdp.push(h, d_H[h][..., None] * pi[..., h, :, :]) if P_pi is None else d_H[h] @ P_pi
    return np.moveaxis(d_H, 0, -2)


def optimal(mdp: AnyMDP) -> tuple[Float, Float, Float]:
    """(V* [..., H+1, X], Q* [..., H, X, Y], a greedy optimal policy [..., H, X, Y]) by backward induction."""
    lead = mdp.r.shape[:-3]
    V_H, Q_H = np.zeros((mdp.H + 1, *lead, mdp.X)), np.empty((mdp.H, *lead, mdp.X, mdp.Y))
    best_H = np.empty((mdp.H, *lead, mdp.X), dtype=np.int64)
    first = np.arange(best_H[0].size) * mdp.Y  # where each state's actions begin in Q_H[h], flattened
    for h in range(mdp.H - 1, -1, -1):
        _bellman(mdp, h, V_H[h + 1], out=Q_H[h])
        Q_H[h].argmax(axis=-1, out=best_H[h])
        V_H[h] = Q_H[h].ravel()[first + best_H[h].ravel()].reshape(V_H[h].shape)
    return np.moveaxis(V_H, 0, -2), np.moveaxis(Q_H, 0, -3), np.moveaxis(_one_hot(best_H, mdp.Y), 0, -3)


def _one_hot(best: NDArray[np.int64], Y: int) -> Float:
    policy = np.zeros((*best.shape, Y))
    policy.ravel()[np.arange(best.size) * Y + best.ravel()] = 1.0  # ravel is a view here: the array is new
    return policy


def greedy(Q: ArrayLike) -> Float:
    """The deterministic policy that takes the best action of `Q` [..., Y]; ties go to the lowest index."""
    Q = np.asarray(Q, dtype=np.float64)
    return _one_hot(Q.argmax(axis=-1), Q.shape[-1])


def policy_advantage(mdp: AnyMDP, pi: ArrayLike, pi_new: ArrayLike) -> Float:
    """A_{pi,mu}(pi') = (1/H) sum_h E_{x~d_h^pi} E_{y~pi'} A_h(x, y)."""
    E = evaluate(mdp, pi)
    gain = (check_policy(mdp, pi_new, "pi_new") * E.A).sum(axis=-1)
    return np.asarray((E.d * gain).sum(axis=(-2, -1)) / mdp.H)


def mixture(pi: ArrayLike, pi_new: ArrayLike, alpha: float) -> Float:
    """pi_alpha = (1 - alpha) pi + alpha pi', in each state. Raises MDPError unless 0 <= alpha <= 1."""
    if not 0.0 <= alpha <= 1.0:
        raise MDPError(f"alpha must lie in [0, 1], got {alpha}")
    return (1.0 - alpha) * np.asarray(pi, dtype=np.float64) + alpha * np.asarray(pi_new, dtype=np.float64)


def return_polynomial(mdp: AnyMDP, pi: ArrayLike, pi_new: ArrayLike) -> Float:
    """Coefficients c [..., H + 1] of J(pi_alpha) = sum_j c_j alpha^j (`numpy.polynomial.polynomial.polyval`).

    pi_alpha = pi + alpha (pi' - pi), so d_h^{pi_alpha} is a polynomial of degree h in alpha, pushed forward coefficient
    by coefficient. c_1 = H * A_{pi,mu}(pi'). The coefficients alternate and grow like binomial(H, j) when pi' differs
    from pi everywhere: beyond H = 40 evaluate mixtures instead.
    """
    old, new = check_policy(mdp, pi), check_policy(mdp, pi_new, "pi_new")
    delta = new - old
    c = np.zeros((*old.shape[:-3], mdp.H + 1))
    d = np.broadcast_to(mdp.mu, (*old.shape[:-3], mdp.X))[..., None, :]  # [..., degree, X]
    for h in range(mdp.H):
        w = np.zeros((*d.shape[:-2], h + 2, mdp.X, mdp.Y))
        w[..., :-1, :, :] = d[..., None] * old[..., None, h, :, :]
        w[..., 1:, :, :] += d[..., None] * delta[..., None, h, :, :]
        c[..., : h + 2] += (w * mdp.r[..., None, h, :, :]).sum(axis=(-2, -1))
        if h < mdp.H - 1:
            d = mdp.push(h, w)
    return c
