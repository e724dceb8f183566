"""Algorithm 2's base group is not iid, its budget is not 2G, uniform resets are not visitation: how much, and so what.

Sampling until the first failure and leaving that failure out of the base group lifts the group's mean reward from q to
q (1 + (1 - q^G) / G). Measured through `cpi.groups.collect`, beside the exact formulas of `cpi.bounds`, for the paper's
seed policy (`FirstFailure`) and for one that leaves the base group whole and takes its seed from it (`IntactBase`).

What the bias does to the gradient. Given their outcomes, the members of the base group are iid from the policy
conditioned on success, or on failure; only the number s of successes has the wrong law. A mean-baseline advantage gives
a group with s successes the expected gradient s (G - s) / G^2 * (E[grad log pi | success] - E[grad log pi | failure]),
and grad J is q (1 - q) times the same difference. So on one prompt the *direction* is exact whatever the law of s is;
what changes is the length, by E[s (G - s)] / (G^2 q (1 - q)), (G - 1) / G for an intact group. Across prompts the bias
is a reweighting by q. The same holds for z-scores, with G sqrt(s (G - s)) in place of s (G - s).

Resets. With episodes of different length, a uniform decision of a random episode is not a random decision: short
episodes are over-weighted, and RRPO looks at failed ones only. Shown on a chain whose wrong attempts give up soon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import softmax

from cpi.advantages import AdvantageEstimator, MeanBaseline, ZScore
from cpi.bounds import base_group_law, base_group_mean, expected_rollouts
from cpi.draws import DrawKey
from cpi.exact import evaluate
from cpi.experiments.figures import Style, mean_interval, new_figure
from cpi.experiments.runner import Cell, Experiment, Json, Table
from cpi.groups import FirstFailure, Group, IntactBase, Plan, SeedPolicy, Split, collect, failed, group_advantages
from cpi.policy_gradient import policy_gradient
from cpi.resets import ResetSampler, UniformWithinEpisode, Visitation
from cpi.simulate import TabularEpisode, TabularPrefix, TabularSimulator
from toy_mdps import ThoughtTree, thought_tree

__all__ = ["EXPERIMENT", "Settings", "cut_law", "signal"]

Float = NDArray[np.float64]
SEEDS: dict[str, SeedPolicy] = {"first-failure": FirstFailure(), "intact": IntactBase()}
STYLES = {
    "first-failure": Style("first failure (the paper)", "#d95f02", "s"),
    "intact": Style("intact base group", "#1b6ca8", "o"),
}
ESTIMATORS: dict[str, AdvantageEstimator] = {"mean": MeanBaseline(), "zscore": ZScore(0, 0.0)}
LAWS = ("visitation", "uniform", "uniform, failed")


@dataclass(frozen=True)
class Settings:
    """q: success probabilities. G: size of base and reset group. prompts, in `batches` independent batches.

    The chain has `steps` thoughts. For the resets: a chain of `long_steps` thoughts, each right with `reliability`,
    that gives up `give_up` thoughts after its first error; `episodes` of them.
    """

    q: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    G: int = 4
    prompts: int = 800
    batches: int = 20
    steps: int = 3
    long_steps: int = 10
    reliability: float = 0.85
    give_up: int = 1
    episodes: int = 20_000


def cells(settings: Settings) -> list[Cell]:
    groups = [Cell(f"{name}-q{q:g}", {"seeds": name, "q": q}) for name in SEEDS for q in settings.q]
    return [*groups, Cell("resets", {})]


def _tree(settings: Settings, q: float) -> ThoughtTree:
    return thought_tree(H=settings.steps, Y=2, hard=settings.steps, reliability=q ** (1 / settings.steps))


def compute(settings: Settings, cell: Cell, rng: np.random.Generator) -> Json:
    if cell.key == "resets":
        return _measured_cuts(settings, rng)
    tree, G = _tree(settings, cell.params["q"]), settings.G
    theta = np.log(tree.pi)
    E = evaluate(tree.mdp, tree.pi)
    grad_J = E.d[..., None] * tree.pi * E.A
    simulator = TabularSimulator(tree.mdp, softmax(theta, axis=-1))
    plan = Plan(Split((G,), (G,)), UniformWithinEpisode(), SEEDS[cell.params["seeds"]])
    found: dict[str, list[float]] = {name: [] for name in ("mean", "rollouts", "trained_on")}
    gradients: dict[str, list[Float]] = {name: [] for name in ESTIMATORS}
    for _ in range(settings.batches):
        keys = [DrawKey(seed=int(rng.integers(2**31)), prompt=i) for i in range(settings.prompts)]
        rollouts = collect(simulator, [TabularPrefix.at(0)] * settings.prompts, keys, plan)
        # the base group of a prompt without a failure is its first G rollouts; the rest stand in for the reset group
        base = [replace(g, episodes=g.episodes[:G]) for g in rollouts.groups if g.kind == "base"]
        found["mean"].append(float(np.mean([e.outcome for g in base for e in g.episodes])))
        found["rollouts"].append(rollouts.account.rollouts / settings.prompts)
        found["trained_on"].append(len(rollouts.episodes()) / settings.prompts)
        for name, estimator in ESTIMATORS.items():
            gradients[name].append(_gradient(theta, base, estimator) * settings.steps)
    return {
        **cell.params,
        **found,
        "length": {name: [float((g * grad_J).sum() / (grad_J**2).sum()) for g in gs] for name, gs in gradients.items()},
        "cosine": {name: _cosine(np.mean(gs, axis=0), grad_J) for name, gs in gradients.items()},
    }


def _gradient(theta: Float, groups: list[Group[TabularEpisode]], estimator: AdvantageEstimator) -> Float:
    return policy_gradient(theta, groups, group_advantages(groups, estimator))


def _cosine(a: Float, b: Float) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def signal(law_S: Float, q: float, estimator: str) -> float:
    """Length of the expected gradient over that of grad J; `law_S` [G + 1]: the law of the number of successes."""
    G = law_S.size - 1
    s = np.arange(G + 1)
    # each of the s successes weighs (1 - s/G) / G, the failures the opposite; divided by the std for z-scores
    weight = s * (G - s) / G**2 if estimator == "mean" else np.sqrt(s * (G - s)) / G
    return float(law_S @ weight / (q * (1 - q)))


def _truncated(episode: TabularEpisode, k: int, give_up: int) -> TabularEpisode:
    """The episode up to `give_up` thoughts after its first error `k` (-1: none)."""
    n = episode.num_decisions if k < 0 else min(k + 1 + give_up, episode.num_decisions)
    rewards = (0.0,) * (n - 1) + (1.0 if k < 0 else 0.0,)
    return replace(episode, states=episode.states[:n], actions=episode.actions[:n], rewards=rewards)


def _long_tree(settings: Settings) -> ThoughtTree:
    return thought_tree(H=settings.long_steps, Y=2, hard=settings.long_steps, reliability=settings.reliability)


def _measured_cuts(settings: Settings, rng: np.random.Generator) -> Json:
    """Cut laws of the samplers themselves, over simulated episodes: [long_steps] by law."""
    tree = _long_tree(settings)
    keys = [DrawKey(seed=int(rng.integers(2**31)), prompt=i) for i in range(settings.episodes)]
    roots = [TabularPrefix.at(0)] * settings.episodes
    whole = TabularSimulator(tree.mdp, tree.pi).continue_from(roots, keys)
    errors = tree.first_error(np.array([e.actions for e in whole]))
    drawn = [(_truncated(e, int(k), settings.give_up), int(k)) for e, k in zip(whole, errors, strict=True)]
    samplers: dict[str, tuple[ResetSampler[Any], list[tuple[TabularEpisode, int]]]] = {
        "visitation": (Visitation(settings.long_steps), drawn),
        "uniform": (UniformWithinEpisode(), drawn),
        "uniform, failed": (UniformWithinEpisode(), [(e, k) for e, k in drawn if failed(e)]),
    }
    out: Json = {"clean": {}}
    for name, (sampler, chosen) in samplers.items():
        law, clean = np.zeros(settings.long_steps), 0.0
        for (_, k), row in zip(chosen, sampler.cut_probs([e for e, _ in chosen]), strict=True):
            law[: row.size] += row
            clean += float(row[: k + 1].sum() if k >= 0 else row.sum())
        out[name] = (law / law.sum()).tolist()
        out["clean"][name] = clean / float(law.sum())
    return out


def cut_law(tree: ThoughtTree, give_up: int, law: str) -> tuple[Float, float]:
    """(law of the cut over k [H], share of cuts whose prefix is free of errors), exactly, for chains that give up."""
    H = tree.mdp.H
    first = np.arange(H + 1)  # the last entry: no error
    length = np.minimum(np.where(first < H, first + 1 + give_up, H), H)
    weight = tree.first_error_law.copy()
    if law == "uniform, failed":
        weight[-1] = 0.0
    row = (np.arange(H) < length[:, None]) * weight[:, None]
    if law != "visitation":
        row = row / length[:, None]
    clean = np.arange(H) <= first[:, None]
    return row.sum(axis=0) / row.sum(), float((row * clean).sum() / row.sum())


def conclude(settings: Settings, results: Mapping[str, Json], rng: np.random.Generator) -> Json:
    G, rows = settings.G, []
    for name in SEEDS:
        for q in settings.q:
            cell = results[f"{name}-q{q:g}"]
            iid = np.array([float(v) for v in np.polynomial.polynomial.polypow([1 - q, q], G)])
            law = base_group_law(q, G) if name == "first-failure" else iid
            exact = {
                "mean": base_group_mean(q, G) if name == "first-failure" else q,
                # an intact base group costs its 2G slots and nothing else
                "rollouts": expected_rollouts(q, G, G) if name == "first-failure" else 2.0 * G,
            } | {f"length {e}": signal(law, q, e) for e in ESTIMATORS}
            measured = {"mean": cell["mean"], "rollouts": cell["rollouts"]}
            measured |= {f"length {e}": cell["length"][e] for e in ESTIMATORS}
            row: Json = {"seeds": name, "q": q, "cosine": cell["cosine"]}
            for what, values in measured.items():
                mean, low, high = mean_interval(values)
                row[what] = {"value": float(mean), "ci95": [float(low), float(high)], "exact": exact[what]}
            rows.append(row)
    tree = _long_tree(settings)
    cuts = []
    cell = results["resets"]
    for kind in LAWS:
        exact_law, clean = cut_law(tree, settings.give_up, kind)
        cuts.append(
            {"law": kind, "exact": exact_law.tolist(), "measured": cell[kind]}
            | {"clean": clean, "measured_clean": cell["clean"][kind]}
        )
    return {"groups": rows, "cuts": cuts}


def table(result: Json) -> Table:
    def shown(found: Json) -> str:
        return f"{found['value']:.3f} ({found['exact']:.3f})"

    columns = ("mean", "rollouts", "length mean", "length zscore")
    rows = [
        (r["seeds"], f"{r['q']:g}", *(shown(r[what]) for what in columns), f"{r['cosine']['mean']:.4f}")
        for r in result["groups"]
    ]
    rows += [
        (f"cuts: {c['law']}", "", f"{c['measured_clean']:.3f} ({c['clean']:.3f}) clean", "", "", "", "")
        for c in result["cuts"]
    ]
    head = ("seed policy", "q", "base mean (exact)", "rollouts", "length, mean", "length, z-score", "cosine")
    return Table(head, rows)


def draw(result: Json) -> Figure:
    figure, ((mean, rollouts), (length, cuts)) = new_figure(2, 2, width=4.8, height=3.4)
    q = np.linspace(0.01, 0.99, 99)
    G = result["config"]["G"]
    mean.plot(q, q, color=STYLES["intact"].color, lw=1.2)
    mean.plot(q, [base_group_mean(v, G) for v in q], color=STYLES["first-failure"].color, lw=1.2)
    rollouts.plot(q, np.full(q.size, 2 * G), color=STYLES["intact"].color, lw=1.2)
    rollouts.plot(q, [expected_rollouts(v, G, G) for v in q], color=STYLES["first-failure"].color, lw=1.2)
    for estimator, ls in (("mean", "-"), ("zscore", "--")):
        intact = [np.polynomial.polynomial.polypow([1 - v, v], G) for v in q]
        biased = [base_group_law(v, G) for v in q]
        for laws, name in ((intact, "intact"), (biased, "first-failure")):
            told = [signal(law, v, estimator) for law, v in zip(laws, q, strict=True)]
            length.plot(q, told, color=STYLES[name].color, lw=1.2, ls=ls)
    for axes, what in ((mean, "mean"), (rollouts, "rollouts"), (length, "length mean"), (length, "length zscore")):
        for name, style in STYLES.items():
            rows = [r for r in result["groups"] if r["seeds"] == name]
            value = np.array([r[what]["value"] for r in rows])
            error = np.abs(np.array([r[what]["ci95"] for r in rows]).T - value)
            form = {"color": style.color, "fmt": style.marker, "ms": 4, "capsize": 2, "lw": 1}
            face = "white" if what == "length zscore" else style.color
            label = None if axes is length else style.label
            axes.errorbar([r["q"] for r in rows], value, yerr=error, mfc=face, **form, label=label)
    mean.set(xlabel="success probability $q$", ylabel="mean reward of the base group")
    rollouts.set(xlabel="success probability $q$", ylabel="rollouts a prompt", ylim=(7.5, None))
    length.set(xlabel="success probability $q$", ylabel="length of the gradient / $|\\nabla J|$", yscale="log")
    length.plot([], [], color="0.3", marker="o", ms=4, lw=1.2, label="mean baseline")
    length.plot([], [], color="0.3", marker="o", mfc="white", ms=4, lw=1.2, ls="--", label="z-score")
    mean.legend(frameon=False, fontsize=8)
    length.legend(frameon=False, fontsize=8, loc="lower left")
    _cuts(cuts, result["cuts"])
    return figure


def _cuts(axes: Any, laws: list[Json]) -> None:
    for found, color, marker in zip(laws, ("#1b6ca8", "#7570b3", "#d95f02"), ("o", "^", "s"), strict=True):
        k = np.arange(len(found["exact"]))
        axes.plot(k, found["exact"], color=color, lw=1.2)
        label = f"{found['law']}: {found['clean']:.0%} clean"
        axes.plot(k, found["measured"], marker, color=color, ms=4, label=label)
    axes.set(xlabel="cut $k$ (decisions kept)", ylabel="probability of the cut", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)


EXPERIMENT: Experiment[Any] = Experiment(
    name="base-group-bias",
    full=Settings(),
    quick=Settings(prompts=200, batches=8, episodes=4000),
    cells=cells,
    compute=compute,
    conclude=conclude,
    table=table,
    draw=draw,
)
