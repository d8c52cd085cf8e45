"""Small experiments on policies whose parameters serve many answers, rewards or turns.

Questions that share a linear layer: does weighing them all alike help the hard ones (DisCO)? Four
rewards of unequal scales in two pairs that pull apart, exact or learned from 200 labels: who keeps
all of them alive, and who is fooled by what was learned (multi-objective GRPO)? Episodes of up to
three turns with one outcome: statistics over episodes or over turns (Flow-GRPO of AgentFlow)?
Claims that do not show are listed beside those that do.

    python benchmarks/policy_sharing.py [--seeds 5]

writes `benchmarks/results/policy_sharing.json` and prints a table (three minutes on one core).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from policy_gradient import F64, draw, report, run
from torch import Tensor

from gflow import Conditions, MLPPolicy, OnPolicy, Reward, Scorer, Trainer, TrainerSettings
from gflow.envs.sequences import AppendSequences
from gflow.kernels import gumbel_noise
from gflow.learned_reward import LearnedReward
from gflow.mdp import States
from gflow.objectives.catalog import get_method
from gflow.objectives.policy_gradient import (
    Advantage,
    Gate,
    Groups,
    advantage,
    aggregate,
    score_difference,
    step_weights,
)
from gflow.pareto import hypervolume
from gflow.policies import Anchored
from gflow.seeding import generator

RESULTS = Path(__file__).parent / "results" / "policy_sharing.json"


def shared(method: str, seed: int) -> dict[str, float]:
    """32 questions, 12 features, 6 answers, one linear layer; steps of one length for all."""
    random = generator(seed, "shared")
    features = torch.randn(32, 12, generator=random, dtype=F64)
    right = torch.randint(6, (32, 1), generator=random)
    # Half of the questions start easy, half of them hard.
    lean = torch.tensor([2.0] * 16 + [-2.0] * 16, dtype=F64).unsqueeze(1)
    bias = torch.zeros(32, 6, dtype=F64).scatter(1, right, lean)
    layer = torch.zeros(12, 6, dtype=F64)
    rows = torch.arange(32).repeat_interleave(8)
    groups, found = Groups.of(rows), {}
    for step in range(1, 401):
        chosen = layer.requires_grad_()
        log_p = (features @ chosen + bias).log_softmax(-1)
        noise = gumbel_noise((256, 6), random, F64, "cpu")
        actions = (log_p.detach()[rows] + noise).argmax(-1)
        rewards = (actions == right[rows, 0]).to(F64)
        if method == "disco":
            value, _ = score_difference(log_p[rows, actions], 2 * rewards - 1, groups)
        else:
            scale = "group_std" if method == "grpo" else "none"
            a = advantage(rewards.unsqueeze(1), groups, torch.ones(256), scale=scale)
            value = (a * log_p[rows, actions]).mean()
        (gradient,) = torch.autograd.grad(value, chosen)
        layer = layer.detach() + 0.02 * gradient / gradient.norm().clamp(min=1e-12)
        if step in (200, 400):
            p = (features @ layer + bias).softmax(-1)
            found[f"hard half {step}"] = float(p.gather(1, right)[16:].mean())
            found[f"entropy {step}"] = float(-(p * p.log()).sum(-1).mean())
    return found


class FourRewards:
    """Eight letters: As against Bs, level against rising; the second of each pair counts triple."""

    rewards = (Reward("A"), Reward("B", high=3.0), Reward("level"), Reward("rising", high=3.0))
    version, on_states, seconds = "1", True, 0.0

    def __call__(self, states: States) -> Tensor:
        """Shares of letters, and of neighbours that are equal or one letter apart, [n, 4]."""
        step = (states.data[:, 1:] - states.data[:, :-1]) % 4
        shares = [states.data == 0, states.data == 1, step == 0, step == 1]
        values = torch.stack([share.float().mean(1) for share in shares], 1)
        return values * torch.tensor([1.0, 3.0, 1.0, 3.0])


COMBINED = {
    "summed": Advantage(),
    "apart": Advantage(combine="norm_then_sum", whitening="sequence"),
    # What counts triple counts only beside a quarter of its opponent.
    "gated": Advantage(gates=(Gate(1, on=0, threshold=0.25), Gate(3, on=2, threshold=0.25))),
}


def four_rewards(method: str, seed: int) -> dict[str, float]:
    """300 updates of 64 sequences towards even weights; rewards as shares of their ranges."""
    how, kind = method.split(", ")
    env, exact = AppendSequences("ABCD", 8), FourRewards()
    policy = Anchored(MLPPolicy(env, (64, 64), seed=seed))
    high = torch.tensor([reward.high for reward in exact.rewards])

    def sampler(n: int, score: Scorer, name: int) -> OnPolicy:
        return OnPolicy(policy, Conditions(), score, n, seed=name, group_size=8, keep_log_pf=True)

    oracle, judge = exact, Scorer(env, exact)
    if kind == "learned":
        labelled = sampler(200, judge, 1000 + seed)()
        oracle = LearnedReward(env, exact.rewards, labelled.terminal, labelled.rewards, seed=seed)
    objective = replace(get_method("mo_grpo").objective, advantage=COMBINED[how])
    settings = TrainerSettings(3e-3, log_every=0, clip_norm=10.0)
    Trainer(policy, objective, sampler(64, Scorer(env, oracle), seed), settings).run(300)
    batch = sampler(512, judge, 2000 + seed)()
    values = batch.rewards / high
    found = {r.name: float(v) for r, v in zip(exact.rewards, values.mean(0), strict=True)}
    found["hypervolume"] = float(hypervolume(values, torch.zeros(4)))
    found["least"] = min(found[reward.name] for reward in exact.rewards)
    found["overrated by"] = float((oracle(batch.terminal) / high - values).mean())
    return found


TURNS, GROUP = 3, 8


def turns(method: str, seed: int) -> dict[str, float]:
    """Up to three turns of an answer and a choice to go on; one right answer is a success."""
    random = generator(seed, "turns")
    answers, go_on = torch.zeros(TURNS, 6, dtype=F64), torch.zeros(TURNS, 2, dtype=F64)
    group = torch.arange(16).repeat_interleave(GROUP)
    n, found = len(group), {}
    for step in range(1, 201):
        said, further = draw(answers, n, random), draw(go_on, n, random)
        taken = torch.cat([torch.ones(n, 1), further[:, :-1].cumprod(1)], 1) > 0
        reward = ((said == 0) & taken).any(1).to(F64).unsqueeze(1)
        length = taken.sum(1)
        logits = [answers.requires_grad_(), go_on.requires_grad_()]
        log_p = torch.stack(
            [
                table.log_softmax(-1).expand(n, -1, -1).gather(2, said_.unsqueeze(2)).squeeze(2)
                for table, said_ in zip(logits, (said, further), strict=True)
            ],
            2,
        )
        # A turn is two tokens of the policy's own and one of the environment's.
        own = torch.tensor([True, True, False])
        mask = (taken.unsqueeze(2) & own).flatten(1)
        log_p = torch.nn.functional.pad(log_p, (0, 1)).flatten(1)
        if method == "turns":
            # Every turn as a trajectory of its own, compared with all turns of its group.
            row, column = taken.nonzero(as_tuple=True)
            a = torch.zeros(n, TURNS, dtype=F64)
            a[row, column] = advantage(reward[row], group[row], torch.ones(len(row)))
            weights = mask.to(F64) / mask.sum()
        else:
            a = advantage(reward, group, length).unsqueeze(1).expand(-1, TURNS)
            weights = step_weights(mask, "rollout_turn_token", F64)
        if method == "last turn":
            a = torch.where(torch.arange(TURNS) == length.unsqueeze(1) - 1, a, 0.0)
        value = aggregate(a.repeat_interleave(3, 1) * log_p, weights)
        one, two = torch.autograd.grad(value, logits)
        answers, go_on = answers.detach() + 2.0 * one, go_on.detach() + 2.0 * two
        if step in (25, 200):
            found[f"success {step}"] = float(reward.mean())
            found[f"turns {step}"] = float(length.double().mean())
    return found


EXPERIMENTS = {
    "shared": (shared, ("disco", "grpo", "dr. grpo")),
    "four rewards": (
        four_rewards,
        tuple(f"{how}, {kind}" for kind in ("exact", "learned") for how in COMBINED),
    ),
    "turns": (turns, ("episodes", "turns", "last turn")),
}
CLAIMS = [
    ("DisCO is better on hard questions than GRPO", "shared", "hard half 200", "disco", "grpo"),
    ("GRPO is better on hard questions than Dr. GRPO", "shared", "hard half 200",
     "grpo", "dr. grpo"),
    ("Apart, the worst of four rewards is better than summed", "four rewards", "least",
     "apart, exact", "summed, exact"),
    ("Apart, the hypervolume is larger than summed", "four rewards", "hypervolume",
     "apart, exact", "summed, exact"),
    ("Gated, the worst of four rewards is better than summed", "four rewards", "least",
     "gated, exact", "summed, exact"),
    ("Learned rewards promise more than is there", "four rewards", "overrated by",
     "summed, learned", "summed, exact"),
    ("Statistics over episodes succeed more often than over turns", "turns", "success 25",
     "episodes", "turns"),
    ("Statistics over turns make episodes longer", "turns", "turns 25", "turns", "episodes"),
    ("Rewards for all turns succeed more often than for the last one", "turns", "success 25",
     "episodes", "last turn"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    torch.set_num_threads(1)
    report(run(EXPERIMENTS, parser.parse_args().seeds), CLAIMS, RESULTS)


if __name__ == "__main__":
    main()
