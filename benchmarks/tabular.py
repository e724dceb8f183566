"""Speed of the tabular core, as ratios: ``python -m benchmarks.tabular [--out FILE] [--repeats N]``.

Each pair of programs is run alternately, one BLAS thread, and compared by the ratios of neighbouring runs (median, and
the 10th and 90th percentile), so that another load on the machine slows both. Times are CPU times. The last block is
absolute.

    goal                                                            at most / at least
    optimal against QuantEcon's backward_induction, dense              1.1 times its time
    V of a deterministic policy against QuantEcon's P_sigma, dense     1.1 times its time
    sparse (10 successors) against dense, X = 2000                     20 times faster
    a stack of 1000 small MDPs against one by one                      20 times faster
    sampled paths and Q-rollouts on one core                           10^6 steps a second
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import quantecon
import scipy
from numpy.random import Generator
from numpy.typing import NDArray
from quantecon.markov import DiscreteDP, backward_induction

from cpi.exact import evaluate, optimal, state_values
from cpi.mdp import FiniteMDP, MDPStack
from cpi.simulate import q_rollouts, sample_paths
from toy_mdps import Garnet, ToyMDP, garnet, thought_tree

RESULT = Path(__file__).parent / "results" / "tabular.json"
Program = Callable[[], object]
Row = dict[str, object]
Float = NDArray[np.float64]
Int = NDArray[np.int64]


def seconds(program: Program) -> float:
    """CPU seconds of this process (user and system): with one thread that is wall-clock without waiting for a core."""
    start = time.process_time()
    program()
    return time.process_time() - start


def compare(name: str, numerator: Program, denominator: Program, goal: str, limit: float, repeats: int) -> Row:
    """Times of both, and the ratio numerator / denominator, over `repeats` alternating runs after a warm-up."""
    numerator(), denominator()
    pairs = np.array([(seconds(numerator), seconds(denominator)) for _ in range(repeats)])
    low, ratio, high = np.quantile(pairs[:, 0] / pairs[:, 1], [0.1, 0.5, 0.9])
    met = ratio <= limit if goal == "at most" else ratio >= limit
    times = [float(t) for t in 1e3 * np.median(pairs, axis=0)]
    return {
        "name": name,
        "ratio": float(ratio),
        "p10": float(low),
        "p90": float(high),
        "goal": f"{goal} {limit:g}",
        "met": bool(met),
        "milliseconds": times,
        "repeats": repeats,
    }


def dense(X: int, Y: int, H: int) -> tuple[FiniteMDP, DiscreteDP]:
    rng = np.random.default_rng(0)
    P, r = rng.random((X, Y, X)), rng.random((X, Y))
    P /= P.sum(axis=-1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # QuantEcon: with beta = 1 its infinite-horizon methods are disabled
        return FiniteMDP.stationary(P, r, np.full(X, 1 / X), H), DiscreteDP(r, P, 1.0)


def against_quantecon(repeats: int) -> list[Row]:
    rows = []
    for X, Y, H in ((200, 10, 50), (2000, 4, 20)):
        mdp, ddp = dense(X, Y, H)
        rng = np.random.default_rng(1)
        pi_H, choice = rng.dirichlet(np.ones(Y), (H, X)), rng.integers(Y, size=X)
        fixed, sure = np.broadcast_to(pi_H[0], pi_H.shape), np.broadcast_to(np.eye(Y)[choice], pi_H.shape)
        size = f"X={X} Y={Y} H={H}"
        n = repeats * (5 if X == 200 else 1)

        def theirs(ddp: DiscreteDP = ddp, H: int = H) -> object:
            return backward_induction(ddp, H)

        def ours(mdp: FiniteMDP = mdp) -> object:
            return optimal(mdp)

        def full(mdp: FiniteMDP = mdp, pi: Float = pi_H) -> object:
            return evaluate(mdp, pi)

        def short(mdp: FiniteMDP = mdp, pi: Float = fixed) -> object:
            return evaluate(mdp, pi)

        def only_v(mdp: FiniteMDP = mdp, pi: Float = sure) -> object:
            return state_values(mdp, pi)

        def their_v(ddp: DiscreteDP = ddp, H: int = H, choice_X: Int = choice) -> object:
            r_X, P_XX = ddp.RQ_sigma(choice_X)
            V = np.zeros((H + 1, r_X.size))
            for h in range(H - 1, -1, -1):
                V[h] = r_X + P_XX @ V[h + 1]
            return V

        rows.append(compare(f"optimal / QuantEcon, {size}", ours, theirs, "at most", 1.1, n))
        rows.append(compare(f"V of a deterministic policy / QuantEcon, {size}", only_v, their_v, "at most", 1.1, n))
        # Beyond QuantEcon: V, Q, A, d, J of stochastic policies. A policy that changes with time needs a product
        # backward and one forward per step where induction has one, so twice its time is parity.
        rows.append(compare(f"evaluate, stationary policy / induction, {size}", short, theirs, "at most", 1.1, n))
        rows.append(compare(f"evaluate, policy in time / induction, {size}", full, theirs, "at most", 2.2, n))
    return rows


def sparse_against_dense(repeats: int) -> list[Row]:
    thin, thick = (garnet(2000, 4, 20, 10, stationary=True, sparse=sparse) for sparse in (True, False))
    pi = np.random.default_rng(1).dirichlet(np.ones(4), (20, 2000))

    def both(function: Callable[[Garnet], object], name: str) -> Row:
        return compare(name, lambda: function(thick), lambda: function(thin), "at least", 20, repeats)

    return [
        both(lambda toy: optimal(toy.mdp), "dense / sparse, optimal, X=2000 Y=4 H=20, 10 successors"),
        both(lambda toy: evaluate(toy.mdp, pi), "dense / sparse, evaluate, policy in time, the same"),
    ]


def stacked_against_single(repeats: int) -> list[Row]:
    toys = [garnet(5, 3, 6, 3, seed=seed) for seed in range(1000)]
    stack, pi = MDPStack.of([toy.mdp for toy in toys]), np.stack([toy.pi for toy in toys])
    size = "1000 MDPs of X=5 Y=3 H=6"
    return [
        compare(
            f"one by one / stack, evaluate, {size}",
            lambda: [evaluate(toy.mdp, toy.pi) for toy in toys],
            lambda: evaluate(stack, pi),
            "at least",
            20,
            repeats,
        ),
        compare(
            f"one by one / stack, optimal, {size}",
            lambda: [optimal(toy.mdp) for toy in toys],
            lambda: optimal(stack),
            "at least",
            20,
            repeats,
        ),
    ]


def steps_per_second(repeats: int) -> list[Row]:
    rows = []
    toys: dict[str, ToyMDP] = {
        "thought tree, H=10": thought_tree(H=10, hard=4),
        "garnet X=200 Y=10 H=50, 5 successors": garnet(200, 10, 50, 5),
        "dense X=200 Y=10 H=50": garnet(200, 10, 50, 200, stationary=True),
    }
    for name, toy in toys.items():
        rng, H = np.random.default_rng(0), toy.mdp.H
        n = 10**6 // H
        zeros = np.zeros(n, dtype=np.int64)

        def paths(mdp: FiniteMDP = toy.mdp, pi: Float = toy.pi, n: int = n, rng: Generator = rng) -> object:
            return sample_paths(mdp, pi, n, rng)

        def rollouts(mdp: FiniteMDP = toy.mdp, pi: Float = toy.pi, at: Int = zeros, rng: Generator = rng) -> object:
            return q_rollouts(mdp, pi, at, at, at, rng)

        for kind, program in (("sample_paths", paths), ("q_rollouts", rollouts)):
            program()
            rates = np.array([n * H / seconds(program) for _ in range(repeats)])
            low, rate, high = np.quantile(rates, [0.1, 0.5, 0.9])
            rows.append(
                {
                    "name": f"steps a second, {kind}, {name}",
                    "ratio": float(rate),
                    "p10": float(low),
                    "p90": float(high),
                    "goal": "at least 1e+06",
                    "met": bool(rate >= 1e6),
                    "repeats": repeats,
                }
            )
    return rows


def environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "quantecon": quantecon.__version__,
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "load_1min": f"{os.getloadavg()[0]:.1f}",
        "blas_threads": "1",
        "date": time.strftime("%Y-%m-%d"),
    }


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON goes (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="alternating runs of each pair (default: %(default)s)")
    args = parser.parse_args(argv)
    start = environment()
    rows: list[Row] = []
    for block in (against_quantecon, sparse_against_dense, stacked_against_single, steps_per_second):
        for row in block(args.repeats):
            rows.append(row)
            print(
                f"{row['name']:<78} {row['ratio']:>10.4g}  [{row['p10']:.4g}, {row['p90']:.4g}]"
                f"  {row['goal']:<14} {'met' if row['met'] else 'MISSED'}",
                flush=True,
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"environment": start, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
