import pytest
import torch

from gflow.conditions import Conditions
from gflow.envs.grids import HyperGrid
from gflow.mdp import Evaluation, evaluate
from gflow.policies import Anchored, MLPPolicy
from gflow.sampling import rollout
from gflow.seeding import generator
from gflow.training import Events, TrainerSettings
from tests.problems import grid_trainer

NEEDS = frozenset({"log_z"})


def anchored(**settings):
    policy = MLPPolicy(HyperGrid(2, 4), (8,), seed=0).double()
    condition = Conditions().sample(20, dtype=torch.float64)
    batch = rollout(policy, policy.env.initial(20), condition, generator(0))
    return Anchored(policy, **settings), batch


def shift(policy, by=1.0):
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.linspace(-1, 1, parameter.numel()).view_as(parameter))


def test_the_reference_stays_while_the_policy_moves():
    policy, batch = anchored()
    before = evaluate(policy, batch, NEEDS)
    before = before._replace(log_z=before.log_z.clone())
    shift(policy)
    assert not torch.allclose(evaluate(policy, batch, NEEDS).log_pf, before.log_pf)
    with policy.reference():
        assert torch.equal(evaluate(policy, batch, NEEDS).log_pf, before.log_pf)
        assert torch.equal(evaluate(policy, batch, NEEDS).log_z, before.log_z)
    assert not torch.allclose(evaluate(policy, batch, NEEDS).log_z, before.log_z)


def test_no_gradient_reaches_the_reference_and_the_environment_is_shared():
    policy, batch = anchored()
    with policy.reference():
        assert not evaluate(policy, batch, NEEDS).log_pf.requires_grad
    evaluate(policy, batch, NEEDS).log_pf.sum().backward()
    assert all(p.grad is None for p in policy.anchor.parameters())
    assert policy.policy.forward_head.weight.grad is not None
    assert policy.anchor.env is policy.env and policy.backward == "uniform"


@pytest.mark.parametrize("every, share, moves", [(0, 1.0, 0), (1, 0.25, 3), (2, 1.0, 1)])
def test_a_moving_reference(every, share, moves):
    policy, _ = anchored(every=every, share=share)
    start = policy.anchor.forward_head.weight.clone()
    shift(policy, 0.1)
    goal = policy.policy.forward_head.weight.detach()
    for _ in range(3):
        policy.move()
    left = (1 - share) ** moves
    expected = goal + left * (start - goal)
    assert torch.allclose(policy.anchor.forward_head.weight, expected, atol=1e-12)


def test_a_policy_that_evaluates_itself_does_so_by_the_reference():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.env = None
            self.shift = torch.nn.Parameter(torch.zeros(1))

        def evaluate(self, batch, needs):
            return Evaluation(self.shift.expand(2), None, None, None, None)

    policy = Anchored(Own())
    shift(policy)
    with policy.reference():
        assert evaluate(policy, None, frozenset()).log_pf.tolist() == [0, 0]
    assert evaluate(policy, None, frozenset()).log_pf.tolist() == [-1, -1]


def test_it_trains_moves_and_resumes_like_any_policy(tmp_path):
    def make(folder=None):
        trainer = grid_trainer(settings=TrainerSettings(learning_rate=1e-2), folder=folder)
        policy = Anchored(trainer.policy, every=2, share=0.5)
        trainer.sampler.policy = policy
        events = Events(on_step=[policy.move])
        return type(trainer)(
            policy, trainer.objective, trainer.sampler, trainer.settings, folder=folder,
            events=events,
        )  # fmt: skip

    whole, first, second = make(), make(tmp_path), make()
    rates = {id(p): g["lr"] for g in whole.optimizer.param_groups for p in g["params"]}
    assert rates[id(whole.policy.log_z.bias)] == 0.1 and len(rates) < len(whole.policy.state_dict())
    whole.run(7)
    first.run(3)
    second.load(tmp_path / "checkpoints" / "step_000000003.pt")
    second.run(7)
    for a, b in zip(whole.policy.state_dict().values(), second.policy.state_dict().values(),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_bad_settings():
    with pytest.raises(ValueError, match=r"share in \(0, 1\]"):
        anchored(every=1, share=0.0)
    with pytest.raises(AttributeError, match="nothing"):
        _ = anchored()[0].nothing
