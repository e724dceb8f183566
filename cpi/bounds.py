"""Both sides of every statement, exactly: one function per statement, for notebook, plot and test alike.

Each function returns a `Bound`: the left side, the right side, and which way the inequality is meant to go. Where the
paper's wording is false (docs/errata.md) the function of that name computes it *as worded*, and the one that ends in
`_repaired` is the corrected statement; proofs are in docs/theory.md, whose numbering the docstrings cite.

One quantity carries the whole theory. Let a gate g_h(x) in [0, 1] say how likely x is to be updated (1 everywhere:
CPI-RR; the indicator of the improvable set G: CPI-CARO; anything else: a soft oracle). The update plays

    pi_alpha = (1 - alpha g) pi + alpha g pi',      q = (1/H) sum_h E_{d_h} g_h   (coverage, acceptance rate),

and with f_h(x) = E_{y ~ pi'} A_h(x, y) its first-order gain is alpha sum_h E_{d_h}[g_h f_h] = alpha H q A_g(pi'). What
can be lost is second order, since the path must already have strayed: it is governed by how often a path of pi passes
two gates, and is at most alpha^2 H^2 (H-1) q R_max / 2 whatever pi' is. All functions take an `FiniteMDP`; those of the
exact statements also take an `MDPStack` with policies and gates that have its leading axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from cpi.exact import Evaluation, evaluate, expected_return, greedy, optimal, policy_advantage
from cpi.improvable import credit_law, improvable_set, oracle_statistics, soft_mixture
from cpi.mdp import AnyMDP, FiniteMDP, MDPError

__all__ = [
    "FIT_CONSTANT",
    "SAMPLE_CONSTANT",
    "Bound",
    "Fit",
    "GatedUpdate",
    "TightnessLaw",
    "algorithm_3_cost",
    "algorithm_3_law",
    "base_group_law",
    "base_group_mean",
    "concentrability",
    "convergence_gap",
    "convergence_gap_sharp",
    "convergence_steps",
    "corollary_5",
    "corollary_5_pairs",
    "corollary_5_repaired",
    "corollary_5_reward_range",
    "corollary_5_sharp",
    "estimate_deviation",
    "estimate_is_useful",
    "exact_step",
    "expected_rollouts",
    "fit",
    "fit_deviation",
    "gain_on_event",
    "gated_update",
    "greedy_transfer",
    "greedy_update",
    "guaranteed_gain",
    "imperfect_oracle",
    "imperfect_oracle_advantage",
    "imperfect_oracle_inequality",
    "kakade_langford_gap",
    "lattice_sum_law",
    "lemma_2",
    "lemma_2_greedy",
    "lemma_3",
    "lemma_3_coupling",
    "lemma_3_per_step",
    "lemma_4",
    "lemma_4_repaired",
    "lemma_4_reward_range",
    "lemma_4_sharp",
    "lemma_6",
    "lemma_7",
    "lemma_8",
    "lemma_9",
    "on_event",
    "performance_difference",
    "proposition_10",
    "proposition_10_berry_esseen",
    "rollouts_needed",
    "step_size",
    "steps_to_gap",
    "theorem_1a",
    "theorem_1b",
]

Array = NDArray[np.float64]
Relation = Literal["<=", ">=", "=="]


@dataclass(frozen=True)
class Bound:
    """A statement's two sides on one instance (or on a stack, or per time step: arrays of equal shape).

    `tol` is the rounding error that the two sides may carry, from the number and size of the terms that they are summed
    from. `first_order` is set where the statement reads "lhs >= first_order - penalty".
    """

    name: str
    lhs: Array
    rhs: Array
    relation: Relation
    tol: float
    first_order: Array | None = None

    @property
    def slack(self) -> Array:
        """By how much the statement holds; negative where it does not. For an equality, minus the difference."""
        if self.relation == "==":
            return -np.abs(self.lhs - self.rhs)
        return self.lhs - self.rhs if self.relation == ">=" else self.rhs - self.lhs

    @property
    def tightness(self) -> Array:
        """The share of what the statement allows that the instance uses: 1 is equality, above 1 a violation.

        lhs / rhs for an upper bound, rhs / lhs for a lower bound, the loss over the penalty where there is a
        first-order term; 0 where nothing is allowed and nothing used.
        """
        used, allowed = (self.rhs, self.lhs) if self.relation == ">=" else (self.lhs, self.rhs)
        if self.first_order is not None:
            used, allowed = self.first_order - self.lhs, self.first_order - self.rhs
        return np.divide(used, allowed, out=np.zeros_like(used), where=allowed > self.tol)

    def holds(self, tol: float | None = None) -> bool:
        """Whether the statement holds everywhere, up to `tol` (default: the rounding error)."""
        return bool((self.slack >= -(self.tol if tol is None else tol)).all())


def _bound(name: str, lhs: ArrayLike, relation: Relation, rhs: ArrayLike, tol: float) -> Bound:
    left, right = np.broadcast_arrays(np.asarray(lhs, dtype=np.float64), np.asarray(rhs, dtype=np.float64))
    return Bound(name, left, right, relation, tol)


def _gain_bound(name: str, update: GatedUpdate, alpha: float, penalty: Array | float) -> Bound:
    """J(pi_alpha) - J(pi) >= alpha H q A_g(pi') - penalty."""
    first = alpha * update.linear
    return Bound(name, update.gain(alpha), first - penalty, ">=", _roundoff(update.mdp), first)


def _roundoff(mdp: AnyMDP) -> float:
    """A first-order bound on the rounding error of sum_h E_{d_h} f_h: H terms up to H R_max, errors adding up over H
    steps.

    Each step of either recursion adds a relative error of (X + Y + 2) u, so the sum carries at most 2 H (X + Y + 2) u
    times its size H * H R_max; J is smaller by H. The factor 4 covers the few operations that combine them.
    """
    u = float(np.finfo(np.float64).eps)
    return 8.0 * u * mdp.H * (mdp.X + mdp.Y + 2) * mdp.H**2 * float(_R(mdp).max())


def _R(mdp: AnyMDP) -> Array:
    """R_max: a scalar array, or [B] for a stack."""
    return np.asarray(mdp.R_max, dtype=np.float64)


# What the statements are made of ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GatedUpdate:
    """The terms of an update pi_alpha = (1 - alpha g) pi + alpha g pi'. Arrays [..., H, X], [..., H] or [...]."""

    mdp: AnyMDP
    pi: Array
    pi_new: Array
    g: Array
    evaluation: Evaluation

    @property
    def f(self) -> Array:
        """f_h(x) = E_{y ~ pi'} A_h(x, y), [..., H, X]."""
        return np.asarray((self.pi_new * self.evaluation.A).sum(axis=-1))

    @property
    def q_H(self) -> Array:
        """Coverage per time step, E_{d_h} g_h."""
        return np.asarray((self.evaluation.d * self.g).sum(axis=-1))

    @property
    def q(self) -> Array:
        return np.asarray(self.q_H.mean(axis=-1))

    @property
    def linear(self) -> Array:
        """H q A_g(pi') = sum_h E_{d_h}[g_h f_h]: the derivative of J(pi_alpha) at alpha = 0."""
        return np.asarray((self.evaluation.d * self.g * self.f).sum(axis=(-2, -1)))

    @property
    def eps(self) -> Array:
        """max over (h, x) of f, as the paper words it: without absolute value, over all states."""
        return np.asarray(self.f.max(axis=(-2, -1)))

    @property
    def up_down(self) -> tuple[Array, Array]:
        """(eps_+, eps_-) = (max(0, max f), max(0, -min f)) over the gated states."""
        gated = np.where(self.g > 0, self.f, 0.0)
        return np.maximum(gated.max(axis=(-2, -1)), 0.0), np.maximum(-gated.min(axis=(-2, -1)), 0.0)

    def policy(self, alpha: float) -> Array:
        """pi_alpha [..., H, X, Y]."""
        if not 0.0 <= alpha <= 1.0:
            raise MDPError(f"alpha must lie in [0, 1], got {alpha}")
        return soft_mixture(self.pi, self.pi_new, alpha * self.g)

    def gain(self, alpha: float) -> Array:
        """J(pi_alpha) - J(pi), exactly."""
        return np.asarray(expected_return(self.mdp, self.policy(alpha)) - self.evaluation.J)

    def pairs_H(self) -> Array:
        """E_pi[g_h(x_h) sum_{k<h} g_k(x_k)], [..., H]: how often a path of pi passes two gates, the later one at h."""
        d, g = self.evaluation.d, self.g
        passed = np.zeros_like(d[..., 0, :])
        out = np.zeros(d.shape[:-1])
        for h in range(self.mdp.H):
            out[..., h] = (passed * g[..., h, :]).sum(axis=-1)
            if h + 1 < self.mdp.H:
                passed = self._push(h, passed + d[..., h, :] * g[..., h, :])
        return out

    def strayed_H(self, alpha: float) -> tuple[Array, Array]:
        """(E_pi[W_h], E_pi[g_h W_h]), [..., H]; W_h = 1 - prod_{k<h} (1 - alpha g_k(x_k)): strayed before h."""
        d, g = self.evaluation.d, self.g
        alive = np.empty_like(d)
        alive[..., 0, :] = d[..., 0, :]
        for h in range(self.mdp.H - 1):
            alive[..., h + 1, :] = self._push(h, alive[..., h, :] * (1.0 - alpha * g[..., h, :]))
        return (d - alive).sum(axis=-1), ((d - alive) * g).sum(axis=-1)

    def _push(self, h: int, mass: Array) -> Array:
        """One forward step under pi of a sub-measure on states [..., X]."""
        return self.mdp.push(h, mass[..., :, None] * self.pi[..., h, :, :])


def gated_update(mdp: AnyMDP, pi: Array, pi_new: Array, g: ArrayLike | None = None) -> GatedUpdate:
    """The update that plays pi_new where the gate g [..., H, X] in [0, 1] lets it; None is 1 everywhere (CPI-RR)."""
    shape = pi.shape[:-1]
    gate = np.ones(shape) if g is None else np.broadcast_to(np.asarray(g, dtype=np.float64), shape)
    if not ((gate >= 0) & (gate <= 1)).all():
        raise MDPError("a gate holds acceptance probabilities in [0, 1]")
    return GatedUpdate(mdp, pi, pi_new, gate, evaluate(mdp, pi))


def greedy_update(mdp: AnyMDP, pi: Array, g: ArrayLike | None = None) -> GatedUpdate:
    """The update towards pi+, greedy with respect to the exact A."""
    return gated_update(mdp, pi, greedy(evaluate(mdp, pi).Q), g)


# Lemma 2 and the performance difference -----------------------------------------------------------------------------


def performance_difference(mdp: AnyMDP, pi: Array, pi_new: Array) -> Bound:
    """J(pi') - J(pi) = sum_h E_{d_h^{pi'}} E_{pi'} A_h^pi (Kakade and Langford 2002; theory.md, section 1)."""
    old, new = evaluate(mdp, pi), evaluate(mdp, pi_new)
    total = (new.d * (pi_new * old.A).sum(axis=-1)).sum(axis=(-2, -1))
    return _bound("performance difference", new.J - old.J, "==", total, _roundoff(mdp))


def lemma_2(mdp: AnyMDP, pi: Array, pi_new: Array, G: ArrayLike) -> Bound:
    """A_pi(pi') = p A^G(pi') + (1 - p) A^{G^c}(pi'), the parts being averages under the conditioned laws of (h, x)."""
    inside = np.asarray(G, dtype=np.float64)
    update = gated_update(mdp, pi, pi_new)
    parts = np.zeros_like(update.q)
    for gate in (inside, 1.0 - inside):
        weight = (update.evaluation.d * gate).sum(axis=(-2, -1)) / mdp.H
        mean = (update.evaluation.d * gate * update.f).sum(axis=(-2, -1)) / mdp.H
        parts = parts + weight * np.divide(mean, weight, out=np.zeros_like(mean), where=weight > 0)
    return _bound("Lemma 2", policy_advantage(mdp, pi, pi_new), "==", parts, _roundoff(mdp))


def lemma_2_greedy(mdp: AnyMDP, pi: Array, tau: float) -> Bound:
    """A_pi(pi_G) = p A^G(pi+) >= tau p, where pi_G plays pi+ on G and pi elsewhere."""
    update = _on_G(mdp, pi, tau)
    return _bound(
        "Lemma 2, greedy", policy_advantage(mdp, pi, update.policy(1.0)), ">=", tau * update.q, _roundoff(mdp)
    )


def _on_G(mdp: AnyMDP, pi: Array, tau: float) -> GatedUpdate:
    ev = evaluate(mdp, pi)
    return gated_update(mdp, pi, greedy(ev.Q), improvable_set(ev.A, tau).astype(np.float64))


# Lemma 3: how far the state law moves -------------------------------------------------------------------------------


def _total_variation_H(update: GatedUpdate, alpha: float) -> Array:
    moved = evaluate(update.mdp, update.policy(alpha)).d
    return np.asarray(0.5 * np.abs(moved - update.evaluation.d).sum(axis=-1))


def lemma_3(mdp: AnyMDP, pi: Array, pi_new: Array, G: ArrayLike, alpha: float) -> Bound:
    """sum_h TV(d_h^{pi_alpha}, d_h^pi) <= alpha H^2 p for pi' = pi off G. Any gate in [0, 1] may stand for G."""
    update = gated_update(mdp, pi, pi_new, G)
    tv = _total_variation_H(update, alpha).sum(axis=-1)
    return _bound("Lemma 3", tv, "<=", alpha * mdp.H**2 * update.q, _roundoff(mdp))


def lemma_3_per_step(mdp: AnyMDP, pi: Array, pi_new: Array, G: ArrayLike, alpha: float) -> Bound:
    """TV(d_h^{pi_alpha}, d_h^pi) <= alpha sum_{k<h} p_k, one entry per h; summed, alpha sum_k (H - k) p_k."""
    update = gated_update(mdp, pi, pi_new, G)
    before = np.cumsum(update.q_H, axis=-1) - update.q_H
    return _bound("Lemma 3, per step", _total_variation_H(update, alpha), "<=", alpha * before, _roundoff(mdp))


def lemma_3_coupling(mdp: AnyMDP, pi: Array, pi_new: Array, G: ArrayLike, alpha: float) -> Bound:
    """TV(d_h^{pi_alpha}, d_h^pi) <= E_pi[1 - prod_{k<h} (1 - alpha g_k(x_k))], per h: the coupling, exactly."""
    update = gated_update(mdp, pi, pi_new, G)
    strayed, _ = update.strayed_H(alpha)
    return _bound("Lemma 3, coupling", _total_variation_H(update, alpha), "<=", strayed, _roundoff(mdp))


# Lemma 4: conservative policy iteration -----------------------------------------------------------------------------


def lemma_4(mdp: AnyMDP, pi: Array, pi_new: Array, alpha: float) -> Bound:
    """Lemma 4 *as worded*: gain >= alpha H A_pi(pi') - alpha^2 H^2 eps / 2, eps = max f. False (erratum 1)."""
    update = gated_update(mdp, pi, pi_new)
    return _gain_bound("Lemma 4 (as worded)", update, alpha, alpha**2 * mdp.H**2 * update.eps / 2)


def lemma_4_repaired(mdp: AnyMDP, pi: Array, pi_new: Array, alpha: float) -> Bound:
    """For every pi': gain >= alpha H A_pi(pi') - alpha^2 H(H-1)/2 (max f - min f). The constant is the best possible.

    For pi' greedy with respect to A, f >= 0, so max f - min f <= eps: Lemma 4 with H(H-1) in place of H^2.
    """
    update = gated_update(mdp, pi, pi_new)
    spread = update.eps - update.f.min(axis=(-2, -1))
    return _gain_bound("Lemma 4 (repaired)", update, alpha, alpha**2 * mdp.H * (mdp.H - 1) / 2 * spread)


def lemma_4_sharp(mdp: AnyMDP, pi: Array, pi_new: Array, alpha: float) -> Bound:
    """gain >= alpha H A_pi(pi') - alpha sum_h (1 - (1-alpha)^(h-1)) (max_x f_h - min_x f_h).

    An equality, for every alpha, on `cpi.slack.tight_chain`.
    """
    update = gated_update(mdp, pi, pi_new)
    spread_H = update.f.max(axis=-1) - update.f.min(axis=-1)
    strayed_H = 1.0 - (1.0 - alpha) ** np.arange(mdp.H)
    return _gain_bound("Lemma 4 (per step)", update, alpha, alpha * (strayed_H * spread_H).sum(axis=-1))


def lemma_4_reward_range(mdp: AnyMDP, pi: Array, pi_new: Array, alpha: float) -> Bound:
    """For every pi': gain >= alpha H A_pi(pi') - alpha^2 H(H^2-1)/3 R_max, which is above the paper's H^3 R_max / 2.

    With eps replaced by its bound H R_max, Lemma 4 is true as worded; this is what Theorem 1a uses (erratum 3). The
    constant is the best possible (`cpi.slack.seesaw`).
    """
    update = gated_update(mdp, pi, pi_new)
    return _gain_bound("Lemma 4 (reward range)", update, alpha, alpha**2 * mdp.H * (mdp.H**2 - 1) / 3 * _R(mdp))


# Corollary 5: credit-aware conservative policy iteration ------------------------------------------------------------


def corollary_5(mdp: AnyMDP, pi: Array, pi_new: Array, G: ArrayLike, alpha: float) -> Bound:
    """Corollary 5 *as worded*: gain >= alpha H p A^G(pi') - alpha^2 H^2 p eps, pi' = pi off G. False in general
    (erratum 2).

    eps is the maximum over all (h, x) of E_{pi'} A, with pi' already set to pi off G.
    """
    update = gated_update(mdp, pi, pi_new, G)
    eps = (update.g * update.f).max(axis=(-2, -1))
    return _gain_bound("Corollary 5 (as worded)", update, alpha, alpha**2 * mdp.H**2 * update.q * eps)


def corollary_5_repaired(mdp: AnyMDP, pi: Array, pi_new: Array, g: ArrayLike, alpha: float) -> Bound:
    """For every pi' and gate g: gain >= alpha H q A_g(pi') - alpha^2 H(H-1) q max{eps_-, (eps_+ + eps_-)/2}.

    eps_+ = max(0, max f) and eps_- = max(0, -min f) over the gated states (Theorem A). The best possible for every such
    pair: attained as alpha -> 0 by `cpi.slack.tight_chain` where eps_+ >= eps_-, and by `cpi.slack.strayed_chain` where
    not. Since the maximum is at most max |f|, Corollary 5 is true as worded with |f| for f. For the greedy pi_G, eps_-
    = 0: the penalty is alpha^2 H(H-1)/2 p eps, less than half of the paper's.
    """
    update = gated_update(mdp, pi, pi_new, g)
    up, down = update.up_down
    penalty = alpha**2 * mdp.H * (mdp.H - 1) * update.q * np.maximum(down, (up + down) / 2)
    return _gain_bound("Corollary 5 (repaired)", update, alpha, penalty)


def corollary_5_pairs(mdp: AnyMDP, pi: Array, pi_new: Array, g: ArrayLike, alpha: float) -> Bound:
    """gain >= alpha H q A_g(pi') - alpha^2 (eps_+ E_pi[sum_{k<h} g_k g_h] + eps_- sum_k (H - k) q_k).

    For a 0/1 gate the first expectation is E_pi[N(N-1)/2], N the number of gated states on a path: what limits an
    improvement towards pi+ is how often a path passes *two* gates. With one decision that matters there is no penalty.
    """
    update = gated_update(mdp, pi, pi_new, g)
    up, down = update.up_down
    later_H = np.arange(mdp.H - 1, -1, -1)
    penalty = alpha**2 * (up * update.pairs_H().sum(axis=-1) + down * (later_H * update.q_H).sum(axis=-1))
    return _gain_bound("Corollary 5 (pairs)", update, alpha, penalty)


def corollary_5_sharp(mdp: AnyMDP, pi: Array, pi_new: Array, g: ArrayLike, alpha: float) -> Bound:
    """gain >= alpha H q A_g(pi') - alpha eps_+ sum_h E_pi[g_h W_h] - alpha eps_- sum_h E_pi[W_h].

    W_h = 1 - prod_{k<h} (1 - alpha g_k(x_k)), the chance to have strayed from the path before h: the coupling, exactly.
    """
    update = gated_update(mdp, pi, pi_new, g)
    up, down = update.up_down
    strayed_H, strayed_gated_H = update.strayed_H(alpha)
    penalty = alpha * (up * strayed_gated_H.sum(axis=-1) + down * strayed_H.sum(axis=-1))
    return _gain_bound("Corollary 5 (coupling)", update, alpha, penalty)


def corollary_5_reward_range(mdp: AnyMDP, pi: Array, pi_new: Array, g: ArrayLike, alpha: float) -> Bound:
    """For every pi' and gate g: gain >= alpha H q A_g(pi') - alpha^2 H^2 (H-1)/2 q R_max.

    Less than half of the paper's alpha^2 H^2 p (H R_max), without its premise on pi'. With g = 1 it is Lemma 4's form,
    so one theorem covers CPI-RR, CPI-CARO and every soft oracle. The constant is the best possible
    (`cpi.slack.dead_end`).
    """
    update = gated_update(mdp, pi, pi_new, g)
    penalty = alpha**2 * mdp.H**2 * (mdp.H - 1) / 2 * update.q * _R(mdp)
    return _gain_bound("Corollary 5 (reward range)", update, alpha, penalty)


# Lemma 6, and what replaces it in the mean --------------------------------------------------------------------------


def lemma_6(mdp: AnyMDP, pi: Array, Qhat: ArrayLike) -> Bound:
    """A_h(x, greedy(Qhat)) >= A_h(x, pi+) - 2 sup_y |Qhat - Q|, one entry per (h, x)."""
    fitted = np.asarray(Qhat, dtype=np.float64)
    ev = evaluate(mdp, pi)
    reached = (greedy(fitted) * ev.A).sum(axis=-1)
    error = np.abs(fitted - ev.Q).max(axis=-1)
    return _bound("Lemma 6", reached, ">=", ev.A.max(axis=-1) - 2 * error, _roundoff(mdp))


@dataclass(frozen=True)
class Fit:
    """What Algorithm 1's proof needs of a fitted Qhat under a sampler with gate g.

    best = A_g(pi+), reached = A_g(pihat+), claimed = E[Y] = E_g sum_y (pihat+ - pi)(y|x) Qhat(x, y): what Ahat
    estimates, and eta = sqrt(2 card(Y)) * (root mean square error of Qhat, x from the sampler and y uniform). `update`
    plays pihat+.
    """

    update: GatedUpdate
    Qhat: Array
    best: float
    reached: float
    claimed: float
    eta: float


def fit(mdp: FiniteMDP, pi: Array, Qhat: ArrayLike, g: ArrayLike | None = None) -> Fit:
    """The quantities of `Fit`, exactly, under the law d_h(x) g_h(x) / (H q)."""
    fitted = np.asarray(Qhat, dtype=np.float64)
    update = gated_update(mdp, pi, greedy(fitted), g)
    law, ev = credit_law(update.evaluation.d, update.g), update.evaluation
    moved = update.pi_new - pi
    squared = (law[..., None] * (fitted - ev.Q) ** 2).sum() / mdp.Y
    return Fit(
        update,
        fitted,
        best=float((law * ev.A.max(axis=-1)).sum()),
        reached=float((law * update.f).sum()),
        claimed=float((law[..., None] * moved * fitted).sum()),
        eta=math.sqrt(2 * mdp.Y * squared),
    )


def greedy_transfer(mdp: FiniteMDP, pi: Array, Qhat: ArrayLike, g: ArrayLike | None = None) -> Bound:
    """[claimed, reached] >= [A_g(pi+) - eta, claimed - eta]: Lemma 6 in the mean (theory.md, section 5).

    eta = sqrt(2 card(Y) E (Qhat - Q)^2) is what Lemma 7 controls; a sup norm is not controlled where pi does not go.
    """
    terms = fit(mdp, pi, Qhat, g)
    right = [terms.best - terms.eta, terms.claimed - terms.eta]
    return _bound("greedy transfer", [terms.claimed, terms.reached], ">=", right, _roundoff(mdp))


# Lemmas 7, 8, 9: the statistics -------------------------------------------------------------------------------------

FIT_CONSTANT = 1.0 / (1.0 - math.exp(-0.5))  # C0 of Lemma 7: 2.5415
SAMPLE_CONSTANT = 312.0  # C of Theorem 1, rounded up from 311.2 (cpi.symbolic.sample_constant)


def lemma_7(weights_U: ArrayLike, Q_U: ArrayLike, F_MU: ArrayLike, n: int, delta: float, scale: float = 1.0) -> Bound:
    """P(E (Qhat - Q)^2 > C0 B^2 log(card(F)/delta) / n) <= delta, the left side by enumeration of all samples.

    A finite domain: u with probability weights_U, a target that is B or 0 with mean Q_U (the law of largest variance),
    B = `scale` = H R_max, a class F_MU [M, U] with values in [0, B] that contains Q. Ties of the least squares fit go
    to the *worst* member, so the statement covers every tie-breaking. Cost: C(n + 2U - 1, 2U - 1) samples; keep n and U
    small.
    """
    weights, Q, F = (np.asarray(v, dtype=np.float64) for v in (weights_U, Q_U, F_MU))
    if not (np.abs(F - Q).max(axis=1) == 0).any():
        raise MDPError("Lemma 7 is about a realizable class: Q_U must be one of the rows of F_MU")
    counts = _compositions(n, 2 * Q.size)  # [samples, 2U]: targets B, then targets 0
    chances = np.concatenate([weights * Q / scale, weights * (1 - Q / scale)])
    log_ways = special.gammaln(n + 1) - special.gammaln(counts + 1.0).sum(axis=1)
    probability = np.exp(log_ways + special.xlogy(counts, chances / chances.sum()).sum(axis=1))
    losses = counts[:, : Q.size] @ ((F - scale) ** 2).T + counts[:, Q.size :] @ (F**2).T
    error_M = (weights * (F - Q) ** 2).sum(axis=1)
    is_least = losses <= losses.min(axis=1, keepdims=True) + 1e-9 * scale**2 * n
    error = np.where(is_least, error_M, 0.0).max(axis=1)
    threshold = FIT_CONSTANT * scale**2 * math.log(len(F) / delta) / n
    return _bound("Lemma 7", probability[error > threshold].sum(), "<=", delta, 1e-9)


def _compositions(n: int, parts: int) -> NDArray[np.int64]:
    """All ways to write n as an ordered sum of `parts` non-negative integers, [count, parts] (stars and bars)."""
    bars = np.array(list(combinations(range(n + parts - 1), parts - 1)), dtype=np.int64).reshape(-1, parts - 1)
    edges = np.hstack([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), n + parts - 1)])
    return np.diff(edges, axis=1) - 1


def lemma_8(mdp: FiniteMDP, pi: Array, Qhat: ArrayLike, g: ArrayLike | None = None) -> Bound:
    """Var(Y) <= 2 card(Y) H^2 R_max^2 for Y = card(Y) (pihat+ - pi)(y|x) Qhat(x, y), exactly, under any gate's sampler.

    Qhat in [0, H R_max]. The variance is over x from the sampler and y uniform.
    """
    terms = fit(mdp, pi, np.clip(np.asarray(Qhat, dtype=np.float64), 0.0, mdp.H * mdp.R_max), g)
    law = credit_law(terms.update.evaluation.d, terms.update.g)
    Y = mdp.Y * (terms.update.pi_new - pi) * terms.Qhat
    second = float((law[..., None] * Y**2).sum() / mdp.Y)
    limit = 2 * mdp.Y * (mdp.H * mdp.R_max) ** 2
    return _bound("Lemma 8", second - terms.claimed**2, "<=", limit, 1e-12 * limit)


def lemma_9(values: ArrayLike, probs: ArrayLike, n: int) -> Bound:
    """Berry-Esseen: sup_x |P(S_n <= x) - Phi(x)| <= 0.6 E|Y - EY|^3 / (sigma^3 sqrt(n)), the left side exactly.

    Y takes the integers `values` with probabilities `probs`; S_n is the standardised mean of n of them.
    """
    v, w = np.asarray(values, dtype=np.int64), np.asarray(probs, dtype=np.float64)
    mean, sigma, third = _moments(v.astype(np.float64), w)
    law = lattice_sum_law(v, w, n)
    below = np.cumsum(law)
    support = v.min() * n + np.arange(law.size)
    normal = special.ndtr((support - n * mean) / (sigma * math.sqrt(n)))
    before = np.concatenate([[0.0], below[:-1]])
    distance = np.maximum(np.abs(below - normal), np.abs(before - normal)).max()
    return _bound("Lemma 9", distance, "<=", 0.6 * third / (sigma**3 * math.sqrt(n)), 1e-11)


def _moments(values: Array, probs: Array) -> tuple[float, float, float]:
    """Mean, standard deviation, E|Y - EY|^3."""
    mean = float(values @ probs)
    centred = np.abs(values - mean)
    sigma = math.sqrt(float(centred**2 @ probs))
    if sigma == 0:
        raise MDPError("a constant variable has no Berry-Esseen bound")
    return mean, sigma, float(centred**3 @ probs)


def lattice_sum_law(values: NDArray[np.int64], probs: Array, n: int) -> Array:
    """The exact law of the sum of n iid integers, on n min(values), ..., n max(values): repeated squaring of
    convolutions.
    """
    base = np.bincount(values - values.min(), weights=probs)
    law = np.ones(1)
    while n:
        if n & 1:
            law = np.convolve(law, base)
        base = np.convolve(base, base) if n > 1 else base
        n >>= 1
    return law


def estimate_deviation(Y: int, scale: float, card_F: int, n: int, delta: float) -> float:
    """zeta: with probability 1 - delta, |Ahat - E[Y^f]| <= zeta for all f in F at once (Bernstein with Lemma 8).

    scale = H R_max. The union over F is needed because pihat+ and Qhat are chosen on the same sample.
    """
    L = math.log(2 * card_F / delta)
    return math.sqrt(4 * Y * scale**2 * L / n) + 2 / 3 * (Y + 1) * scale * L / n


def fit_deviation(Y: int, scale: float, card_F: int, n: int, delta: float) -> float:
    """eta: with probability 1 - delta, sqrt(2 card(Y) E (Qhat - Q)^2) is at most this (Lemma 7). scale = H R_max."""
    return math.sqrt(2 * Y * FIT_CONSTANT * scale**2 * math.log(card_F / delta) / n)


# Theorem 1, and its extension to imperfect oracles ------------------------------------------------------------------


def rollouts_needed(Y: int, H: int, R_max: float, card_F: int, delta: float, t: float) -> int:
    """n = N0 / t^2 with N0 = 312 card(Y) H^2 R_max^2 log(4 card(F)/delta).

    t is the advantage under the sampler that is known to be there: tau p for CPI-RR, tau for CPI-CARO, rho tau for a
    soft oracle. With so many Q-rollouts 3 eta + zeta <= t/2 with probability 1 - delta.
    """
    return math.ceil(SAMPLE_CONSTANT * Y * (H * R_max) ** 2 * math.log(4 * card_F / delta) / t**2)


def step_size(Ahat: float, H: int, R_max: float, step_constant: float = 1.0) -> float:
    """alpha = min{1, Ahat / (step_constant H^2 R_max)}, and 0 for a non-positive estimate."""
    return min(1.0, max(Ahat, 0.0) / (step_constant * H**2 * R_max))


def guaranteed_gain(t: float, H: int, R_max: float, q: float = 1.0, step_constant: float = 1.0) -> float:
    """What Theorem 1 guarantees on its event: q t^2 (2c - 1) / (8 c^2 H R_max), c = step_constant.

    q t^2 / (8 H R_max) for c = 1, and 3 q t^2 / (32 H R_max) for the paper's oracle step, c = 2.
    """
    return q * t**2 * (2 * step_constant - 1) / (8 * step_constant**2 * H * R_max)


def on_event(terms: Fit, zeta: float, t: float) -> bool:
    """Theorem 1's event: A_g(pi+) >= t and 3 eta + |zeta| <= t / 2, where zeta = Ahat - E[Y]."""
    return terms.best >= t and 3 * terms.eta + abs(zeta) <= t / 2


def estimate_is_useful(terms: Fit, zeta: float) -> Bound:
    """[Ahat, 2 A_g(pihat+) - Ahat] >= A_g(pi+) - 3 eta - |zeta|, for Ahat = E[Y] + zeta: the repaired chain of Theorem
    1.
    """
    Ahat = terms.claimed + zeta
    right = terms.best - 3 * terms.eta - abs(zeta)
    tol = _roundoff(terms.update.mdp)
    return _bound("Theorem 1, estimate", [Ahat, 2 * terms.reached - Ahat], ">=", right, tol)


def _theorem_1(name: str, terms: Fit, zeta: float, t: float, q: float, step_constant: float) -> Bound:
    mdp, R_max = terms.update.mdp, float(_R(terms.update.mdp).max())
    if not on_event(terms, zeta, t):
        raise MDPError(f"{name} speaks of A_g(pi+) >= t and 3 eta + |zeta| <= t/2; this fit or estimate is outside")
    alpha = step_size(terms.claimed + zeta, mdp.H, R_max, step_constant)
    guaranteed = guaranteed_gain(t, mdp.H, R_max, q, step_constant)
    return _bound(name, terms.update.gain(alpha), ">=", guaranteed, _roundoff(mdp))


def gain_on_event(terms: Fit, zeta: float, t: float) -> Bound:
    """On Theorem 1's event even J(pi_alpha) - J(pi) >= q A_g(pi+)^2 / (8 H R_max), step constant 1 (A_g(pi+) >= t).

    This is what the convergence theorem adds up. Raises MDPError outside of the event.
    """
    bound = _theorem_1("Theorem 1, advantage form", terms, zeta, t, float(terms.update.q), 1.0)
    mdp = terms.update.mdp
    right = guaranteed_gain(terms.best, mdp.H, float(_R(mdp).max()), float(terms.update.q))
    return _bound(bound.name, bound.lhs, ">=", right, bound.tol)


def theorem_1a(mdp: FiniteMDP, pi: Array, tau: float, Qhat: ArrayLike, zeta: float) -> Bound:
    """CPI-RR on its event: J(pi_alpha) - J(pi) >= tau^2 p^2 / (8 H R_max), for the fitted Qhat and Ahat = E[Y] + zeta.

    The event (`on_event` with t = tau p) has probability 1 - delta with `rollouts_needed`. Raises MDPError outside of
    it.
    """
    p = float(_on_G(mdp, pi, tau).q)
    return _theorem_1("Theorem 1a", fit(mdp, pi, Qhat), zeta, tau * p, 1.0, 1.0)


def theorem_1b(
    mdp: FiniteMDP, pi: Array, tau: float, Qhat: ArrayLike, zeta: float, step_constant: float = 2.0
) -> Bound:
    """CPI-CARO on its event: gain >= 3 tau^2 p / (32 H R_max) with the paper's step, tau^2 p / (8 H R_max) for
    step_constant 1.

    The paper states tau^2 p / (16 H R_max), which is less. The event is `on_event` with t = tau, under the credit
    sampler.
    """
    gate = _on_G(mdp, pi, tau).g
    terms = fit(mdp, pi, Qhat, gate)
    return _theorem_1("Theorem 1b", terms, zeta, tau, float(terms.update.q), step_constant)


def imperfect_oracle(mdp: FiniteMDP, pi: Array, tau: float, g: ArrayLike, Qhat: ArrayLike, zeta: float) -> Bound:
    """A soft oracle on its event: gain >= kappa rho p tau^2 / (8 H R_max), step min{1, Ahat / (H^2 R_max)}, N0/(rho
    tau)^2 draws.

    g [H, X] accepts with recall kappa and precision rho. kappa = rho = 1 is Theorem 1b with the better step; accept-all
    (kappa = 1, rho = p) is Theorem 1a, constant included: the guarantee beats random resets exactly when kappa rho > p.
    """
    terms = fit(mdp, pi, Qhat, g)
    G = improvable_set(terms.update.evaluation.A, tau)
    oracle = oracle_statistics(terms.update.evaluation.d, G, terms.update.g)
    return _theorem_1("imperfect oracle", terms, zeta, oracle.rho * tau, oracle.q, 1.0)


def imperfect_oracle_advantage(mdp: FiniteMDP, pi: Array, tau: float, g: ArrayLike) -> Bound:
    """A_g(pi+) = E[A(x, pi+) | accepted] >= rho tau."""
    update = greedy_update(mdp, pi, g)
    oracle = oracle_statistics(update.evaluation.d, improvable_set(update.evaluation.A, tau), update.g)
    mean = float(update.linear) / (mdp.H * oracle.q)
    return _bound("imperfect oracle, advantage", mean, ">=", oracle.rho * tau, _roundoff(mdp) / oracle.q)


def imperfect_oracle_inequality(mdp: AnyMDP, pi: Array, g: ArrayLike, alpha: float) -> Bound:
    """gain >= alpha H q A_g(pi+) - alpha^2 H(H-1)/2 q eps for pi_g = g pi+ + (1 - g) pi; eps = max A over the gated
    states.
    """
    update = greedy_update(mdp, pi, g)
    up, _ = update.up_down
    return _gain_bound(
        "imperfect oracle, inequality", update, alpha, alpha**2 * mdp.H * (mdp.H - 1) / 2 * update.q * up
    )


# Algorithm 3 --------------------------------------------------------------------------------------------------------


def algorithm_3_law(d: ArrayLike, g: ArrayLike, max_trials: int) -> Bound:
    """Rejection sampling is exact: P(accepted at (h, x) within max_trials | accepted) is the credit law, entry by
    entry.

    The left side adds up the trials j = 1, 2, ..., each (1-q)^(j-1) d_h(x) g_h(x) / H; the limit on the trials does not
    bias.
    """
    occupancy, gate = np.asarray(d, dtype=np.float64), np.asarray(g, dtype=np.float64)
    once = occupancy * gate / len(occupancy)
    refused = (1.0 - once.sum()) ** np.arange(max_trials)
    accepted = (refused[:, None, None] * once).sum(axis=0)
    return _bound("Algorithm 3, law", accepted / accepted.sum(), "==", credit_law(occupancy, gate), 1e-12)


def algorithm_3_cost(q: float, n: int, horizon: int) -> Bound:
    """E[cheap trials for n accepted draws] = n / q, the left side from the negative binomial law up to `horizon`
    trials.

    What lies beyond the horizon is added as its tail mass times (horizon + n/q), an upper bound by memorylessness, and
    is the tolerance.
    """
    trials = np.arange(n, horizon + 1)
    log_ways = special.gammaln(trials) - special.gammaln(n) - special.gammaln(trials - n + 1.0)
    mass = np.exp(log_ways + n * math.log(q) + special.xlog1py(trials - n, -q))
    tail = max(0.0, 1.0 - mass.sum()) * (horizon + n / q)
    return _bound("Algorithm 3, cost", trials @ mass, "==", n / q, tail + 1e-9 * n / q)


# Proposition 10 -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TightnessLaw:
    """Proposition 10's Y: k (R/2 + tau) with prob. p/k, k (R/2 + eps) with (1-p)/k, -k R/2 with 1/k, else 0."""

    p: float
    k: int
    tau: float
    eps: float
    R_max: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.p <= 1 and self.k >= 2 and 0 <= self.eps <= self.tau <= self.R_max / 2 and self.tau > 0):
            raise MDPError("Proposition 10 needs 0 < p <= 1, k >= 2 and 0 <= eps <= tau <= R_max / 2, tau > 0")

    @property
    def values(self) -> Array:
        R = self.R_max
        return self.k * np.array([R / 2 + self.tau, R / 2 + self.eps, -R / 2, 0.0])

    @property
    def probs(self) -> Array:
        return np.array([self.p, 1 - self.p, 1, self.k - 2]) / self.k

    @property
    def mean(self) -> float:
        """A = p tau + (1 - p) eps."""
        return self.p * self.tau + (1 - self.p) * self.eps

    @property
    def sigma(self) -> float:
        return math.sqrt(float(self.probs @ self.values**2) - self.mean**2)

    @property
    def n_range(self) -> tuple[float, float]:
        """(44 k, sigma^2 / (4 A^2)): where P(Ahat <= 0) >= 0.18. The paper asks for n >= 6400 k^2; linear in k
        suffices.
        """
        return 44.0 * self.k, (self.sigma / (2 * self.mean)) ** 2

    def berry_esseen_floor(self, n: int) -> float:
        """Phi(-sqrt(n) A / sigma) - 0.6 E|Y - A|^3 / (sigma^3 sqrt(n)), which P(Ahat <= 0) cannot be below."""
        mean, sigma, third = _moments(self.values, self.probs)
        root = math.sqrt(n)
        return float(special.ndtr(-root * mean / sigma)) - 0.6 * third / (sigma**3 * root)

    def probability_not_positive(self, n: int) -> float:
        """P(Ahat <= 0), exactly up to 1e-12 of truncated binomial mass.

        M of the n draws hit y0 or y1 (binomial, 2/k), U of those y1 (binomial, 1/2), V of those in x1 (binomial, p);
        the sum is <= 0 iff V (tau - eps) <= (M - U) R/2 - U (R/2 + eps). O(n) values of M times O(sqrt n) of U.
        """
        total = 0.0
        hits = _bulk(n, 2 / self.k)
        for M, chance in zip(hits, _binomial(hits, n, 2 / self.k), strict=True):
            U = _bulk(M, 0.5)
            room = (M - U) * self.R_max / 2 - U * (self.R_max / 2 + self.eps)
            if self.tau == self.eps:
                below = (room >= -1e-12).astype(np.float64)
            else:
                below = _binomial_cdf(np.floor(room / (self.tau - self.eps) + 1e-9), U, self.p)
            total += float(chance * (_binomial(U, M, 0.5) @ below))
        return total


def _binomial(count: NDArray[np.int64], n: int, p: float) -> Array:
    """P(Binomial(n, p) = count). SciPy's `stats` would cost a second of import."""
    log_ways = special.gammaln(n + 1.0) - special.gammaln(count + 1.0) - special.gammaln(n - count + 1.0)
    return np.asarray(np.exp(log_ways + special.xlogy(count, p) + special.xlog1py(n - count, -p)))


def _binomial_cdf(count: Array, n: NDArray[np.int64], p: float) -> Array:
    """P(Binomial(n, p) <= count) for integer `count` of any sign."""
    inside = np.clip(count, 0, n)
    return np.where(count < 0, 0.0, np.where(count >= n, 1.0, special.bdtr(inside, n, p)))


def _bulk(n: int, p: float) -> NDArray[np.int64]:
    """Integers that hold all but 1e-14 of Binomial(n, p) on either side, by Bernstein's inequality."""
    L = -math.log(1e-14)
    reach = math.sqrt(2 * n * p * (1 - p) * L) + 2 * L / 3 + 1
    return np.arange(max(0, math.floor(n * p - reach)), min(n, math.ceil(n * p + reach)) + 1)


def proposition_10(law: TightnessLaw, n: int) -> Bound:
    """P(Ahat <= 0) >= 0.18 for 44 k <= n <= sigma^2 / (4 A^2), the left side exactly. Raises MDPError outside that
    range.
    """
    low, high = law.n_range
    if not low <= n <= high:
        raise MDPError(f"Proposition 10 speaks of n from {low:.0f} to {high:.0f}, got {n}")
    return _bound("Proposition 10", law.probability_not_positive(n), ">=", 0.18, 1e-9)


def proposition_10_berry_esseen(law: TightnessLaw, n: int) -> Bound:
    """P(Ahat <= 0) >= Phi(-sqrt(n) A / sigma) - 0.6 E|Y - A|^3 / (sigma^3 sqrt(n)), for every n."""
    return _bound(
        "Proposition 10, Berry-Esseen", law.probability_not_positive(n), ">=", law.berry_esseen_floor(n), 1e-9
    )


# Algorithm 2: base group and budget ---------------------------------------------------------------------------------


def _check_group(q: float, G: int, attempts: int) -> None:
    if not 0.0 <= q <= 1.0:
        raise MDPError(f"the success probability q must lie in [0, 1], got {q}")
    if G < 1 or attempts < G:
        raise MDPError(f"a base group needs G >= 1 and at least G attempts, got G = {G}, attempts = {attempts}")


def base_group_mean(q: float, G: int, attempts: int | None = None, given_seed: bool = False) -> float:
    """Expected mean reward of Algorithm 2's base group at success probability q: q (1 + (1 - q^G) / G), not q.

    The first failure within `attempts` rollouts (default 2G) is the seed and is dropped; the base group is the first G
    of the others, or without a failure all 2G slots. Up to 1 + 1/G times too high: q = 1/2, G = 4 gives 0.6172. The cap
    on attempts does not matter from 2G on; `given_seed` conditions on there being a seed, where it does. With G <=
    attempts < 2G the slots that are topped up without a failure are unbiased, and the bias is smaller.
    """
    cap = 2 * G if attempts is None else attempts
    _check_group(q, G, cap)
    never = q**cap
    mean = q * (1 + (1 - q**G) / G)
    if given_seed:
        if never == 1.0:
            raise MDPError("with q = 1 there is never a seed")
        return (mean - never) / (1 - never)
    return mean - never * (1 - q) * max(0, 2 * G - cap) / (2 * G)


def base_group_law(q: float, G: int) -> Array:
    """P(s of the G base rollouts are correct), s = 0..G, for at least 2G attempts: min(Binomial(G + 1, q), G)."""
    _check_group(q, G, G)
    law = _binomial(np.arange(G + 2), G + 1, q)
    return np.concatenate([law[:G], [law[G] + law[G + 1]]])


def expected_rollouts(q: float, base: int, reset: int, attempts: int | None = None) -> float:
    """Expected rollouts of a prompt under Algorithm 2, thrown-away seed and surplus successes included.

    `base` and `reset` slots (4 and 4 in the paper), attempts capped at base + reset by default: base + 1 + (q^(base+1)
    - q^M) / (1 - q) + reset (1 - q^M) + max(0, base + reset - M) q^M with M = attempts. It is 2G + 1 for q = 0 and 2G
    only where there is no failure; localisation comes on top.
    """
    M = base + reset if attempts is None else attempts
    if not 0.0 <= q <= 1.0 or base < 0 or reset < 1 or base >= M:
        raise MDPError(f"needs q in [0, 1], base >= 0, reset >= 1, attempts > base; got {q}, {base}, {reset}, {M}")
    surplus = sum(q**t for t in range(base + 1, M))
    return base + 1 + surplus + reset * (1 - q**M) + max(0, base + reset - M) * q**M


# Convergence --------------------------------------------------------------------------------------------------------


def concentrability(mdp: AnyMDP, pi: Array) -> Array:
    """C = max_{h,x} d_h^{pi*}(x) / d_h^pi(x) for the optimal policy of `optimal`; infinite where pi never goes."""
    best = evaluate(mdp, optimal(mdp)[2]).d
    d = evaluate(mdp, pi).d
    ratio = np.divide(best, d, out=np.where(best > 0, np.inf, 0.0), where=d > 0)
    return np.asarray(ratio.max(axis=(-2, -1)))


def convergence_gap(mdp: AnyMDP, pi: Array, tau: float) -> Bound:
    """J(pi*) - J(pi) <= H tau + C H^2 R_max p_pi."""
    update, gap = _on_G(mdp, pi, tau), _gap(mdp, pi)
    right = mdp.H * tau + _times_C(mdp, pi, mdp.H**2 * _R(mdp) * update.q)
    return _bound("convergence, gap", gap, "<=", right, _roundoff(mdp))


def convergence_gap_sharp(mdp: AnyMDP, pi: Array, tau: float) -> Bound:
    """J(pi*) - J(pi) <= H tau + C H a_pi, with a_pi = p A^G(pi+) the gain that the credit sampler sees: the better
    potential.
    """
    update = _on_G(mdp, pi, tau)
    right = mdp.H * tau + _times_C(mdp, pi, update.linear)
    return _bound("convergence, sharp gap", _gap(mdp, pi), "<=", right, _roundoff(mdp))


def kakade_langford_gap(mdp: AnyMDP, pi: Array) -> Bound:
    """J(pi*) - J(pi) <= C H A_pi(pi+): what random resets are judged by (Kakade and Langford 2002, Theorem 6.2)."""
    right = _times_C(mdp, pi, greedy_update(mdp, pi).linear)
    return _bound("convergence, random resets", _gap(mdp, pi), "<=", right, _roundoff(mdp))


def _times_C(mdp: AnyMDP, pi: Array, potential: Array) -> Array:
    """C * potential, infinite wherever C is: a potential of zero says nothing of states that pi never visits."""
    C = concentrability(mdp, pi)
    return np.where(np.isinf(C), np.inf, np.where(np.isinf(C), 0.0, C) * potential)


def _gap(mdp: AnyMDP, pi: Array) -> Array:
    return np.asarray(expected_return(mdp, optimal(mdp)[2]) - expected_return(mdp, pi))


def exact_step(mdp: FiniteMDP, pi: Array, g: ArrayLike | None = None) -> Bound:
    """One step with exact values, alpha = min{1, A_g(pi+) / (H^2 R_max)}: gain >= q A_g(pi+)^2 / (2 H R_max)."""
    update = greedy_update(mdp, pi, g)
    q = float(update.q)
    mean = float(update.linear) / (mdp.H * q) if q > 0 else 0.0
    alpha = step_size(mean, mdp.H, mdp.R_max)
    return _bound("exact step", update.gain(alpha), ">=", q * mean**2 / (2 * mdp.H * mdp.R_max), _roundoff(mdp))


def convergence_steps(H: int, R_max: float, tau: float, p0: float, variant: Literal["cpi-rr", "cpi-caro"]) -> float:
    """Steps after which p_pi <= p0 has been met for the first time, gains of Theorem 1 with step constant 1.

    8 H^2 R_max^2 / (tau^2 p0) with the oracle, 8 H^2 R_max^2 / (tau^2 p0^2) without (theory.md, Theorem D): N0 / tau^2
    and N0 / (tau p0)^2 rollouts a step, fresh ones, over a class that contains the Q of the step's policy.
    """
    return 8 * (H * R_max / tau) ** 2 / (p0 if variant == "cpi-caro" else p0**2)


def steps_to_gap(H: int, R_max: float, C: float, gap: float, variant: Literal["cpi-rr", "cpi-caro"]) -> float:
    """Steps after which J(pi*) - J(pi) <= gap, by the better potential: 32 C H^4 R^2 / gap^2 or 8 C^2 H^4 R^2 / gap^2.

    CPI-CARO runs at tau = gap / (2H). The oracle turns C^2 into 4 C (theory.md, Theorem E, which needs what Theorem D
    needs, and C as a number known beforehand that bounds `concentrability` along every run).
    """
    scale = (H**2 * R_max / gap) ** 2
    return 32 * C * scale if variant == "cpi-caro" else 8 * C**2 * scale
