"""Every closed form of every toy MDP against exact evaluation."""

import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import toy_mdps
from cpi.draws import DrawKey
from cpi.exact import evaluate, expected_return, optimal, policy_advantage
from cpi.improvable import coverage, improvable_set
from cpi.mdp import MDPError
from cpi.resets import Noisy
from cpi.simulate import TabularPrefix, TabularSimulator, sample_paths
from toy_mdps.gym import TabularEnv

ATOL = 1e-12
CHAINS = {
    "lock, uniform": toy_mdps.combination_lock(5, Y=3),
    "lock, able": toy_mdps.combination_lock(4, c=0.8, seed=3),
    "points, spread": toy_mdps.decision_points(8, decisive=2, Y=3, c=0.4),
    "points, chosen": toy_mdps.decision_points(6, decisive=(0, 5), trifle=0.05),
    "points, none": toy_mdps.decision_points(4, decisive=0, trifle=0.1),
    "symptom": toy_mdps.delayed_symptom(7, delay=2, c=0.7, Y=3),
    "symptom, at once": toy_mdps.delayed_symptom(3, delay=0, c=(0.5, 1.0, 0.9)),
    "symptom, never": toy_mdps.delayed_symptom(3, delay=9, c=0.5),
    "tree": toy_mdps.thought_tree(),
    "tree, all hard": toy_mdps.thought_tree(H=4, Y=11, hard=4, reliability=0.6, seed=2),
    "tree, chosen": toy_mdps.thought_tree(H=5, hard=(3,), easy_reliability=1.0),
    "tree, one step": toy_mdps.thought_tree(H=1, hard=1),
}
ALL = {
    **CHAINS,
    "tightness": toy_mdps.tightness(0.1),
    "tightness, trifling": toy_mdps.tightness(0.3, tau=0.4, eps=0.01, k=6, R=2.0),
    "garnet": toy_mdps.garnet(6, 3, 5, 2, seed=1),
    "garnet, sparse": toy_mdps.garnet(6, 3, 5, 2, seed=1, sparse=True),
}


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("garnet")])
def test_stated_returns_are_exact(name):
    toy = ALL[name]
    np.testing.assert_allclose(expected_return(toy.mdp, toy.pi), toy.J, atol=ATOL)
    np.testing.assert_allclose(toy.mdp.mu @ optimal(toy.mdp)[0][0], toy.J_star, atol=ATOL)


@pytest.mark.parametrize("name", CHAINS)
def test_stated_best_gains_are_the_largest_advantages(name):
    toy = CHAINS[name]
    A = evaluate(toy.mdp, toy.pi).A
    np.testing.assert_allclose(A[:, 0].max(axis=-1), toy.best_gain_H, atol=ATOL)


@pytest.mark.parametrize("name", CHAINS)
def test_stated_coverage_is_exact_at_every_threshold(name):
    toy = CHAINS[name]
    E = evaluate(toy.mdp, toy.pi)
    gains = np.unique(E.A[E.A > 1e-9].round(12))
    for tau in [*(gains[:-1] + gains[1:]) / 2, gains[0] / 2, gains[-1] * 1.01]:  # between the jumps, not on them
        np.testing.assert_allclose(toy.coverage(tau), coverage(E.d, improvable_set(E.A, tau)).p, atol=ATOL)


def test_decision_points_dial_coverage_to_k_over_h():
    for k in range(1, 11):
        toy = toy_mdps.decision_points(10, decisive=k, trifle=0.1)
        E = evaluate(toy.mdp, toy.pi)
        np.testing.assert_allclose(coverage(E.d, improvable_set(E.A, 0.3)).p, k / 10, atol=ATOL)


@pytest.mark.parametrize(
    ("name", "state_law"),
    [
        ("lock, able", "open_H"),
        ("symptom", "clean_H"),
        ("tree", "right_so_far_H"),
        ("tree, all hard", "right_so_far_H"),
    ],
)
def test_stated_law_of_the_intact_state_is_the_occupancy(name, state_law):
    toy = CHAINS[name]
    np.testing.assert_allclose(evaluate(toy.mdp, toy.pi).d[:, 0], getattr(toy, state_law), atol=ATOL)


# Proposition 10


@pytest.mark.parametrize("name", ["tightness", "tightness, trifling"])
def test_tightness_advantages_and_moments_are_those_of_proposition_10(name):
    toy = ALL[name]
    E = evaluate(toy.mdp, toy.pi)
    expected = np.zeros((1, 2, toy.k))
    expected[0, :, 1] = (toy.tau, toy.eps)
    np.testing.assert_allclose(E.A, expected, atol=ATOL)
    np.testing.assert_allclose(policy_advantage(toy.mdp, toy.pi, toy.pi_plus), toy.A_bar, atol=ATOL)
    np.testing.assert_allclose(coverage(E.d, improvable_set(E.A, toy.tau - 1e-9)).p, toy.coverage, atol=ATOL)
    values, probs = toy.Y_law()
    np.testing.assert_allclose(probs.sum(), 1.0, atol=ATOL)
    np.testing.assert_allclose(probs @ values, toy.A_bar, atol=ATOL)
    np.testing.assert_allclose(probs @ values**2, toy.second_moment_Y, rtol=1e-12)
    np.testing.assert_allclose(probs @ (values - toy.A_bar) ** 2, toy.var_Y, rtol=1e-12)
    for x, gain in enumerate((toy.tau, toy.eps)):
        values, probs = toy.Y_law(x)
        np.testing.assert_allclose(probs @ values, gain, atol=ATOL)


def test_y_law_is_the_law_of_the_algorithms_estimate():
    toy = ALL["tightness, trifling"]
    mean, second = 0.0, 0.0
    for x in range(2):
        for y in range(toy.k):
            Y = toy.k * (toy.pi_plus - toy.pi)[0, x, y] * toy.mdp.r[0, x, y]
            mean += toy.mdp.mu[x] / toy.k * Y
            second += toy.mdp.mu[x] / toy.k * Y**2
    np.testing.assert_allclose([mean, second], [toy.A_bar, toy.second_moment_Y], rtol=1e-12)


# First errors


def test_the_docstring_chain_goes_wrong_at_its_second_thought():
    tree = toy_mdps.thought_tree(H=3, Y=3, hard=3)
    chain = tree.right_H.copy()
    chain[1] = (chain[1] + 1) % 3
    assert tree.first_error(chain[None]).tolist() == [1]
    assert tree.first_error(tree.right_H[None]).tolist() == [-1]


def test_states_of_a_thought_tree_name_the_first_error():
    tree = toy_mdps.thought_tree(H=5, hard=5, reliability=0.7)
    paths = sample_paths(tree.mdp, tree.pi, 2_000, np.random.default_rng(0))
    error_N = tree.first_error(paths.y_NH)
    for h in range(5):  # at step h the state is 0, or e for a first error at decision e - 1 < h
        expected = np.where((error_N >= 0) & (error_N < h), error_N + 1, 0)
        np.testing.assert_array_equal(paths.x_NH[:, h], expected)
    np.testing.assert_array_equal(paths.returns_N, error_N == -1)


def test_first_errors_follow_their_stated_law():
    tree = toy_mdps.thought_tree(H=4, hard=2)
    n = 50_000
    error_N = tree.first_error(sample_paths(tree.mdp, tree.pi, n, np.random.default_rng(0)).y_NH)
    share = np.bincount(np.where(error_N < 0, 4, error_N), minlength=5) / n
    # Fixed seed; five standard errors of each share.
    assert (np.abs(share - tree.first_error_law) <= 5 * np.sqrt(tree.first_error_law / n)).all()


def test_the_trees_localiser_points_at_the_first_error_and_at_nothing_in_a_right_chain():
    tree = toy_mdps.thought_tree(H=4, hard=4)
    simulator = TabularSimulator(tree.mdp, tree.pi)
    keys = [DrawKey(seed=0, slot=i) for i in range(64)]
    episodes = simulator.continue_from([TabularPrefix.at(0)] * 64, keys)
    for episode, row in zip(episodes, tree.localiser().cut_probs(episodes), strict=True):
        k = int(tree.first_error(np.array(episode.actions))[0])
        np.testing.assert_array_equal(row, np.zeros(4) if k < 0 else np.eye(4)[k])
    noisy = Noisy(tree.localiser(), exact=0.6, shift_probs={-1: 1.0}).cut_probs(episodes)
    np.testing.assert_allclose([row.sum() for row in noisy], [e.outcome == 0 for e in episodes])


def test_a_symptom_shows_delay_plus_one_steps_after_the_first_error_and_resetting_there_gains_nothing():
    toy = toy_mdps.delayed_symptom(8, delay=2, c=0.7)
    paths = sample_paths(toy.mdp, toy.pi, 1_000, np.random.default_rng(0))
    error_N, symptom_N = toy.first_error(paths.y_NH), toy.symptom(paths.y_NH)
    broken_NH = paths.x_NH == toy.delay + 1
    np.testing.assert_array_equal(symptom_N, np.where(broken_NH.any(axis=1), broken_NH.argmax(axis=1), -1))
    shown = symptom_N >= 0
    np.testing.assert_array_equal(symptom_N[shown] - error_N[shown], 3)
    A = evaluate(toy.mdp, toy.pi).A
    np.testing.assert_array_equal(A[:, 1:], 0.0)
    np.testing.assert_array_equal(paths.returns_N, error_N == -1)


# Garnets


def test_a_garnet_has_its_branching_and_is_the_same_sparse_and_dense():
    dense, thin = ALL["garnet"].mdp, ALL["garnet, sparse"].mdp
    assert ((dense.P > 0).sum(axis=-1) == 2).all()
    for h in range(dense.H):
        np.testing.assert_array_equal(thin.P[h].toarray(), dense.P[h].reshape(-1, dense.X))
    np.testing.assert_array_equal(thin.r, dense.r)


@pytest.mark.parametrize(("X", "branching"), [(9, 9), (100, 10), (100, 3), (1, 1)])
def test_successors_of_a_garnet_are_distinct_whatever_the_branching(X, branching):
    kernel = toy_mdps.garnet(X, 2, 1, branching, sparse=True).mdp.P[0]
    for row in range(2 * X):
        columns = kernel.indices[kernel.indptr[row] : kernel.indptr[row + 1]]
        assert np.unique(columns).size == branching


def test_a_garnets_seed_decides_it():
    one, same, other = (toy_mdps.garnet(5, 2, 3, 2, seed=seed).mdp for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.P, same.P)
    assert not np.array_equal(one.P, other.P)


# Gymnasium


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["tightness", "lock, able", "points, spread", "symptom", "tree", "garnet", "garnet, sparse"]
)
def test_gymnasiums_checker_accepts_every_toy_mdp(name):
    check_env(TabularEnv(ALL[name].mdp), skip_render_check=True)


def test_returns_of_gymnasium_episodes_average_to_j():
    toy = CHAINS["tree, all hard"]
    env, rng = TabularEnv(toy.mdp), np.random.default_rng(0)
    returns = []
    for episode in range(2_000):
        observation, _ = env.reset(seed=episode)
        total, done = 0.0, False
        while not done:
            h, x = divmod(observation, toy.mdp.X)
            observation, reward, done, truncated, info = env.step(int(rng.choice(toy.mdp.Y, p=toy.pi[h, x])))
            assert not truncated
            assert (info["h"], info["x"]) == divmod(observation, toy.mdp.X)
            total += reward
        returns.append(total)
    # 0/1 returns, fixed seeds: five standard errors.
    assert abs(np.mean(returns) - toy.J) <= 5 * np.sqrt(toy.J * (1 - toy.J) / 2_000)


def test_a_gymnasium_environment_resets_to_a_chosen_state():
    env = TabularEnv(CHAINS["tree"].mdp)
    observation, info = env.reset(options={"h": 3, "x": 2})
    assert info == {"h": 3, "x": 2}
    assert observation == 3 * env.mdp.X + 2
    steps = 0
    done = False
    while not done:
        *_, done, _, _ = env.step(0)
        steps += 1
    assert steps == env.mdp.H - 3
    with pytest.raises(MDPError, match="call reset first"):
        env.step(0)
    with pytest.raises(MDPError, match="h must lie in"):
        env.reset(options={"h": env.mdp.H, "x": 0})


def test_toy_mdps_import_without_gymnasium():
    script = "import sys; sys.modules['gymnasium'] = None; import toy_mdps; import toy_mdps.gym"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == (
        "ImportError: toy_mdps.gym needs Gymnasium: pip install 'credit-resets[gym]'"
    )


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: toy_mdps.tightness(0.0), r"p must lie in \(0, 1\]"),
        (lambda: toy_mdps.tightness(0.5, tau=0.6), "tau <= R/2"),
        (lambda: toy_mdps.tightness(0.5, tau=0.1, eps=0.2), "eps < tau"),
        (lambda: toy_mdps.tightness(0.5, k=1), "k must be at least 2"),
        (lambda: toy_mdps.combination_lock(3, Y=1), "at least 2 actions"),
        (lambda: toy_mdps.combination_lock(3, c=1.5), "reliabilities must be probabilities"),
        (lambda: toy_mdps.combination_lock(0), "each step needs"),
        (lambda: toy_mdps.decision_points(3, decisive=4), r"0..H = 3"),
        (lambda: toy_mdps.decision_points(3, decisive=(3,)), r"decisive steps must lie in 0..2"),
        (lambda: toy_mdps.decision_points(3, decisive=1, trifle=2.0), "trifle <= gain"),
        (lambda: toy_mdps.delayed_symptom(3, delay=-1), "delay must not be negative"),
        (lambda: toy_mdps.delayed_symptom(3, delay=1, c=(0.5, 0.5)), "3 and 2"),
        (lambda: toy_mdps.thought_tree(H=3, hard=4), r"0..H = 3"),
        (lambda: toy_mdps.thought_tree(H=3, hard=(7,)), r"hard steps must lie in 0..2"),
        (lambda: toy_mdps.thought_tree(H=3, Y=1), "at least 2 actions"),
        (lambda: toy_mdps.garnet(3, 2, 2, 4), r"branching must lie in 1..X = 3"),
        (lambda: toy_mdps.garnet(3, 0, 2, 1), "X, Y and H must be at least 1"),
    ],
)
def test_a_bad_parameter_is_refused_with_a_clear_message(make, message):
    with pytest.raises(MDPError, match=message):
        make()
