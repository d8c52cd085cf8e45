import itertools
import pickle
import subprocess
import sys

import pytest
import torch

from gflow.envs.molecules import FragmentMolecules, Vocabulary
from gflow.envs.molecules.chemistry import SITE_CLASSES, allowed_pairs
from gflow.kernels import noise_widths
from gflow.mdp import States, concat_states
from tests.envs.molecule_walks import SYMMETRIC, any_legal, random_action, random_molecules, walk


@pytest.fixture(scope="module")
def env():
    return FragmentMolecules()


def same(one: States, other: States) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def read_table(env, nodes):
    """Fragments, and the sites each node has left, from parents and sites alone."""
    nodes = [node for node in nodes if node[0] < env.n_fragments]
    left = [set(range(len(env.vocabulary.sites[node[0]]))) for node in nodes]
    for index, (_, slot, site, _) in enumerate(nodes):
        if slot >= 0:
            parent, other = divmod(slot, env.n_sites)
            assert parent < index
            left[parent].remove(other)
            left[index].remove(site)
    return [node[0] for node in nodes], left


@pytest.mark.parametrize(
    "preset, size, least", [("full", 9, 2), ("irreducible", 4, 3), ("full", 1, 1)]
)
def test_masks_agree_with_brute_force(preset, size, least):
    env = FragmentMolecules(preset=preset, max_fragments=size, min_fragments=least)
    pairs, classes = allowed_pairs(), env.vocabulary.site_classes
    halves = [(v, s) for v in range(env.n_fragments) for s in range(len(classes[v]))]
    for states, actions in walk(env, 12):
        first = env.forward_mask(states)
        second = env.forward_mask(states, actions[:, 0])
        for row in range(states.n):
            fragments, left = read_table(env, states.data[row].tolist())
            done, n = bool(states.done[row]), len(fragments)
            legal = {}
            if n == 0:
                legal[0] = list(range(env.n_halves, env.n_entries))
            elif not done and n < size:
                for node, free in enumerate(left):
                    for site in free:
                        mine = classes[fragments[node]][site]
                        fit = [h for h, (v, s) in enumerate(halves) if pairs[mine][classes[v][s]]]
                        if fit:
                            legal[node * env.n_sites + site] = fit
            if done or (n and (n >= least or not legal)):
                legal[env.n_slots] = [env.n_entries - 1]
            assert first[row].nonzero()[:, 0].tolist() == sorted(legal)
            assert second[row].nonzero()[:, 0].tolist() == legal[int(actions[row, 0])]


def test_a_molecule_that_cannot_grow_may_stop():
    env = FragmentMolecules(Vocabulary(("F", "C"), ((0,), (0,))), max_fragments=5, min_fragments=3)
    states = random_molecules(env, 20)
    assert env.size(states).eq(2).all()
    alone = FragmentMolecules(Vocabulary(("F",), ((0,),)), max_fragments=3, min_fragments=2)
    assert alone.decode(random_molecules(alone, 2)) == ["F", "F"]


def test_step_and_backstep_are_inverses(env):
    path = walk(env, 300, seed=1)
    for (states, actions), (following, _) in itertools.pairwise(path):
        going = ~states.done
        states, actions, following = states.rows(going), actions[going], following.rows(going)
        undo = env.backward_action(states, actions)
        assert env.backward_mask(following).gather(1, undo[:, None]).all()
        assert same(env.backstep(following, undo), states)
        assert torch.equal(env.forward_action(following, undo), actions)


def test_backstep_and_step_are_inverses(env):
    generator = torch.Generator().manual_seed(2)
    states = random_molecules(env, 300, seed=2)
    while (states.step > 0).any():
        undo = any_legal(env.backward_mask(states), generator)
        parents = env.backstep(states, undo)
        begun = states.step > 0
        redo = env.forward_action(states, undo)[begun]
        before = parents.rows(begun)
        assert env.forward_mask(before).gather(1, redo[:, :1]).all()
        assert env.forward_mask(before, redo[:, 0]).gather(1, redo[:, 1:]).all()
        assert same(env.step(before, redo), states.rows(begun))
        assert torch.equal(env.backward_action(before, redo), undo[begun])
        states = parents
    assert same(states, env.initial(300))


def test_backward_mask_has_one_entry_per_leaf(env):
    states = concat_states([states for states, _ in walk(env, 30, seed=3)])
    mask = env.backward_mask(states)
    for row in range(states.n):
        fragments, _ = read_table(env, states.data[row].tolist())
        parents = {slot // env.n_sites for _, slot, _, _ in states.data[row].tolist()}
        leaves = [i for i in range(len(fragments)) if i not in parents]
        if states.done[row] or not fragments:
            leaves = [env.max_fragments]
        assert mask[row].nonzero()[:, 0].tolist() == leaves


def test_every_order_of_growth_gives_one_table():
    env = FragmentMolecules(SYMMETRIC, max_fragments=4, min_fragments=1)
    root = env.step(env.initial(1), torch.tensor([[0, env.n_halves]]))
    # Benzene with a second benzene at site 4 and an ether at site 1, in both orders.
    benzene, ether = [4, 0], [1, 6]
    one = env.step(env.step(root, torch.tensor([benzene])), torch.tensor([ether]))
    other = env.step(env.step(root, torch.tensor([ether])), torch.tensor([benzene]))
    assert same(one, other)
    assert one.data[0, :3, 1].tolist() == [-1, 1, 4]


def test_finished_and_initial_rows_stay_as_they_are(env):
    done = random_molecules(env, 5)
    assert same(env.step(done, torch.zeros(5, 2, dtype=torch.int64)), done)
    start = env.initial(5)
    assert same(env.backstep(start, torch.zeros(5, dtype=torch.int64)), start)
    last = torch.tensor([env.n_slots] * 5)
    assert env.forward_mask(done).nonzero()[:, 1].tolist() == last.tolist()
    assert env.forward_mask(done, last).nonzero()[:, 1].tolist() == [env.n_entries - 1] * 5
    assert env.backward_mask(start).nonzero()[:, 1].tolist() == [env.max_fragments] * 5


def test_batch_equals_loop(env):
    for states, actions in walk(env, 8, seed=4):
        undo = env.backward_mask(states).float().argmax(1)
        for call in (
            lambda s, a, b: env.step(s, a).data,
            lambda s, a, b: env.backstep(s, b).data,
            lambda s, a, b: env.forward_mask(s),
            lambda s, a, b: env.forward_mask(s, a[:, 0]),
            lambda s, a, b: env.observe(s).flat,
            lambda s, a, b: env.observe(s).parent_half,
        ):
            alone = [
                call(states.rows(torch.tensor([i])), actions[i : i + 1], undo[i : i + 1])
                for i in range(states.n)
            ]
            assert torch.equal(call(states, actions, undo), torch.cat(alone))


def test_observation_tells_tables_apart(env):
    states = concat_states([states for states, _ in walk(env, 200, seed=5)])
    n_tables = len(torch.unique(states.data, dim=0))
    seen = env.observe(states)
    assert seen.flat.max() <= env.flat_size and seen.flat.min() >= 0
    assert len(torch.unique(seen.flat, dim=0)) == n_tables
    columns = [seen.fragment, seen.parent, seen.own_half, seen.parent_half]
    assert len(torch.unique(torch.cat(columns, 1), dim=0)) == n_tables


def test_sampling_is_reproducible(env):
    one, other = random_molecules(env, 20, seed=6), random_molecules(env, 20, seed=6)
    assert same(one, other)
    generator = torch.Generator().manual_seed(0)
    noise = env.noise(2, 300, generator, torch.float64, "cpu")
    assert noise.shape == (2, 300, sum(noise_widths(env.action_sizes))) and noise.isfinite().all()
    assert env.noise(1, 3, generator, torch.float32, "cpu", backward=True).shape == (1, 3, 10)


def test_environment_survives_pickling(env):
    again = pickle.loads(pickle.dumps(env))
    states = random_molecules(env, 10)
    assert same(states, random_molecules(again, 10))
    assert again.decode(states) == env.decode(states)


def test_bad_settings():
    with pytest.raises(ValueError, match="preset must be 'full' or 'irreducible', not 'small'"):
        FragmentMolecules(preset="small")
    for least, most in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match=f"not {least} and {most}"):
            FragmentMolecules(min_fragments=least, max_fragments=most)


def test_allowed_pairs_are_symmetric_and_leave_nobody_alone():
    table = torch.tensor(allowed_pairs())
    assert torch.equal(table, table.T) and table.any(1).all()
    n, o = SITE_CLASSES.index("N"), SITE_CLASSES.index("O")
    assert not table[n, n] and not table[n, o] and not table[o, o]


def test_gflow_envs_does_not_import_rdkit():
    code = "import sys, gflow.envs; sys.exit('rdkit' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_illegal_growth_never_happens_at_full_size():
    env = FragmentMolecules(max_fragments=3)
    generator = torch.Generator().manual_seed(0)
    states = env.initial(100)
    for _ in range(4):
        states = env.step(states, random_action(env, states, generator))
    assert states.done.all() and env.size(states).max() == 3
    assert torch.equal(states.step, env.size(states) + 1)
