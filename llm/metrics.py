"""Per-step metrics of a run: sums on each process, merged over processes, then shares and means.

Sums come first and ratios last, so a run on two processes reports what a run on one does. The accuracy of a step is
measured on the fresh rollouts of the current policy (`Rollouts.fresh`), not on the base groups, whose mean the paper's
seed policy biases upwards.

kappa, rho and p place the localiser on the imperfect-oracle curve (docs/theory.md), where the first error is known: to
the task, or of some seeds by Monte Carlo values (`llm.first_errors`). There the improvable set G of a failed response
holds one of its states: the prefix just before its first wrong thought, the state whose decision it was that lost. This
is what the oracle localiser accepts, and a lower bound on the paper's G, which also holds states whose decision went
well by chance.

    p      coverage: states in G / states, along the seeds; where nothing is localised, along the failed fresh rollouts
           of the step (which weigh prompts with many failures more, and failures that a seed policy passes over; by
           Monte Carlo values, along the first failure of a few prompts)
    kappa  recall: the mean over seeds of g at the state in G, where g_k = row_k / max(row) is the sampler's row of
           cut probabilities as an acceptance test, scaled so that its likeliest cut is always accepted
    rho    precision: the sum of g over states in G / its sum over all states of all seeds

A uniform row accepts everything, so random resets have kappa = 1 and rho = p; a localiser with one answer each has
rho = its share of hits among its answers, and kappa = its share of hits among all seeds, unanswered ones included. The
theory's guarantee favours the localiser over random resets where kappa * rho > p.

groups_with_signal is the share of groups with an advantage other than 0: where rewards are compared, of groups whose
rewards differ. VinePPO and the trees compare values of parts of responses, and can have a gradient where it is 0.

localiser_exact, localiser_clean and localiser_deviation are of the cuts that were named, whether or not the prompt fell
back to plain GRPO because another of its resets had none. (`llm.measure`, before and
after training, counts an answer that names no cut as a miss.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from cpi.groups import Localisation, Rollouts, failed
from llm import token_signal
from llm.first_errors import FirstErrors
from llm.thoughts import ThoughtTrace

__all__ = ["merge", "step_metrics", "step_sums"]


def step_sums(
    rollouts: Rollouts[ThoughtTrace],
    advantages: Sequence[NDArray[np.float64]],
    first_errors: FirstErrors,
    answers: Mapping[str, int],
) -> dict[str, float]:
    """Sums over the prompts of one process. `answers` counts the localiser's parse statuses of this step.

    kl and tied, the log-ratios to the initial model and the number of responses tied to it, are the trainer's to fill.
    """
    fresh = [t for ts in rollouts.fresh for t in ts]
    reset = [t for g in rollouts.groups if g.kind == "reset" for t in g.episodes]
    trained = rollouts.episodes()
    statuses = Counter(t.score.status for t in trained)
    return {
        **{name: float(value) for name, value in asdict(rollouts.account).items()},
        "fresh": len(fresh),
        "fresh_reward": sum(t.outcome for t in fresh),
        "fresh_correct": sum(not failed(t) for t in fresh),
        "reset": len(reset),
        "reset_reward": sum(t.outcome for t in reset),
        "trained": len(trained),
        "truncated": sum(not t.finished for t in trained),
        "trained_tokens": sum(t.generated for t in trained),
        "response_tokens": sum(len(t.ids) for t in trained),
        "groups": len(rollouts.groups),
        "groups_with_signal": sum(bool(np.any(a != 0)) for a in advantages),
        **{f"verifier/{status}": float(statuses[status]) for status in ("unparsable", "timeout", "error")},
        **{f"answers/{status}": float(n) for status, n in answers.items()},
        "kl": 0.0,
        "tied": 0.0,
        **token_signal.step_sums(rollouts.groups, advantages),
        "oracle_rollouts": float(first_errors.rollouts),
        "oracle_tokens": float(first_errors.tokens),
        **_localisation_sums(rollouts.localisations, first_errors),
        **_coverage_sums([t for t in fresh if failed(t)], first_errors),
    }


def _localisation_sums(
    localisations: Sequence[Localisation[ThoughtTrace]], first_errors: FirstErrors
) -> dict[str, float]:
    names = ("cuts", "cut_sum", "known", "exact", "clean", "deviation", "seeds_known", "seed_states")
    sums = dict.fromkeys((*names, "accepted_G", "accepted"), 0.0)
    for loc in localisations:
        sums["cuts"] += loc.k >= 0
        sums["cut_sum"] += max(loc.k, 0)
        true = first_errors(loc.seed)
        if true is None:
            continue
        g_K = loc.row_K / max(float(loc.row_K.max(initial=0.0)), np.finfo(float).tiny)
        sums["seeds_known"] += 1
        sums["seed_states"] += loc.row_K.size
        sums["accepted_G"] += float(g_K[true])
        sums["accepted"] += float(g_K.sum())
        if loc.k >= 0:
            sums["known"] += 1
            sums["exact"] += loc.k == true
            sums["clean"] += loc.k <= true
            sums["deviation"] += loc.k - true
    return sums


def _coverage_sums(failures: Sequence[ThoughtTrace], first_errors: FirstErrors) -> dict[str, float]:
    known = [t for t in failures if first_errors(t) is not None]
    return {"states_G": float(len(known)), "states": float(sum(t.num_decisions for t in known))}


def merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sums of all processes."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _ratio(sums: Mapping[str, float], over: str, under: str) -> float | None:
    return sums[over] / sums[under] if sums[under] else None


def step_metrics(sums: Mapping[str, float]) -> dict[str, float | None]:
    """What `metrics.jsonl` holds for a step: shares are None where there is nothing to take a share of."""
    return {
        "accuracy": _ratio(sums, "fresh_correct", "fresh"),
        "reward": _ratio(sums, "fresh_reward", "fresh"),
        "reset_reward": _ratio(sums, "reset_reward", "reset"),
        "groups_with_signal": _ratio(sums, "groups_with_signal", "groups"),
        "truncated": _ratio(sums, "truncated", "trained"),
        "mean_tokens": _ratio(sums, "trained_tokens", "trained"),
        "mean_response_tokens": _ratio(sums, "response_tokens", "trained"),
        "localiser_exact": _ratio(sums, "exact", "known"),
        "localiser_clean": _ratio(sums, "clean", "known"),
        "localiser_deviation": _ratio(sums, "deviation", "known"),
        "mean_cut": _ratio(sums, "cut_sum", "cuts"),
        "kl": _ratio(sums, "kl", "tied"),
        "kappa": _ratio(sums, "accepted_G", "seeds_known"),
        "rho": _ratio(sums, "accepted_G", "accepted"),
        "p": _ratio(sums, "seeds_known", "seed_states") or _ratio(sums, "states_G", "states"),
        **token_signal.step_ratios(sums),
        **{name: sums[name] for name in _COUNTS},
        **{name: value for name, value in sums.items() if "/" in name},
    }


_COUNTS = (
    "rollouts",
    "tokens",
    "discarded_rollouts",
    "discarded_tokens",
    "localisation_calls",
    "localisation_tokens",
    "localiser_rollouts",
    "localiser_tokens",
    "oracle_queries",
    "oracle_rollouts",
    "oracle_tokens",
    "no_failure",
    "no_cut",
    "went_back",
    "cuts",
    "batches",
)
