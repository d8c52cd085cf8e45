import pytest
import torch

from gflow.conditions import Conditions
from gflow.envs.molecules import FragmentMolecules
from gflow.mdp import evaluate
from gflow.policies.graph import graph_trunk
from gflow.policies.tree import TreePolicy
from gflow.sampling import rollout
from gflow.seeding import generator


def gine(width):
    from torch_geometric.nn import GINEConv

    return GINEConv(torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU()))


def gat(width):
    from torch_geometric.nn import GATv2Conv

    return GATv2Conv(width, width, edge_dim=width, add_self_loops=False)


@pytest.mark.parametrize("layer", [gine, gat])
def test_torch_geometric_layers_make_a_policy(layer):
    env = FragmentMolecules(max_fragments=4)
    conditions = Conditions(2, concentration=1.0)
    policy = TreePolicy(
        env,
        conditions.encoding_size,
        hidden=16,
        layers=2,
        backward="learned",
        flow=True,
        trunk=graph_trunk(layer),
    )
    condition = conditions.sample(20, generator(0))
    batch = rollout(policy, env.initial(20), condition, generator(1), keep_log_pf=True)
    needs = frozenset({"log_pb", "log_flow", "log_z"})
    found = evaluate(policy, batch, needs)
    assert torch.allclose(found.log_pf, batch.log_pf_old, atol=1e-4)
    (found.log_pf.sum() + found.log_pb.sum() + found.log_flow.sum() + found.log_z.sum()).backward()
    assert all(p.grad is not None for p in policy.parameters())
    assert policy.trunk.fragment.weight.grad.abs().sum() > 0
    # Rows do not see each other.
    half = evaluate(policy, batch.rows(torch.arange(10)), needs)
    assert torch.allclose(half.log_pf, found.log_pf[:10, : half.log_pf.shape[1]], atol=1e-5)


def test_the_graph_policy_sees_its_preference():
    env = FragmentMolecules(max_fragments=4)
    conditions = Conditions(2, concentration=1.0)
    policy = TreePolicy(env, conditions.encoding_size, hidden=16, layers=1, trunk=graph_trunk(gine))
    batch = rollout(policy, env.initial(8), conditions.sample(8, generator(0)), generator(1))
    before = evaluate(policy, batch, frozenset()).log_pf
    batch.condition = conditions.sample(8, generator(2))
    assert not torch.allclose(before, evaluate(policy, batch, frozenset()).log_pf)
