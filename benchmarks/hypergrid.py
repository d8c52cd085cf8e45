"""The Trainer against a flat hand-written loop of the same arithmetic on HyperGrid 8x8x8x8.

Trajectory balance, learned P_B, one-hot input, two hidden layers of 256, float32, Adam, one
thread. Both loops run in turn in one process from the same trained weights, with learning rates of
0, so that all of them walk trajectories of the same lengths while every operation of a step is
done; times are the medians of this process's CPU time over windows.

    python benchmarks/hypergrid.py [--compile] [--grpo] [--windows 7]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from gflow.conditions import Conditions
from gflow.envs.grids import CornerReward, HyperGrid, corner_reward
from gflow.objectives.balance import TrajectoryBalance
from gflow.objectives.policy_gradient import PolicyGradient
from gflow.policies import MLPPolicy
from gflow.sampling import OnPolicy, Scorer, compile_block, step_block
from gflow.training import Trainer, TrainerSettings

DIM, SIDE = 4, 8


def plain(layer: nn.Linear) -> nn.Linear:
    """The same layer of torch's own kind."""
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict(layer.state_dict())
    return copy


class FlatLoop:
    """No abstraction: tensors, a rollout without gradient, one pass over the real rows.

    Args:
        batch_size: trajectories of an iteration.
        policy: whose weights to start from.
        group_size: trajectories of a group for GRPO; 0 trains trajectory balance.
    """

    def __init__(self, batch_size: int, policy: MLPPolicy, group_size: int = 0):
        self.batch_size, self.group_size = batch_size, group_size
        self.first = nn.Linear(DIM * SIDE, 256)
        self.first.load_state_dict(
            {"weight": policy.first.seen.detach().T, "bias": policy.first.bias}
        )
        hidden = [plain(layer) for layer in policy.trunk]
        self.trunk = nn.Sequential(self.first, nn.ReLU(), *hidden, nn.ReLU())
        self.pf, self.pb = plain(policy.forward_head), plain(policy.backward_head)
        self.log_z = nn.Parameter(policy.log_z.bias.detach().clone())
        used = (self.trunk, self.pf) if group_size else (self.trunk, self.pf, self.pb)
        weights = [p for m in used for p in m.parameters()]
        self.parameters = weights if group_size else [*weights, self.log_z]
        groups = [{"params": weights, "lr": 0.0}, {"params": [self.log_z], "lr": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self.eye = torch.eye(SIDE)
        self.axes = torch.arange(DIM)
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> None:
        n = self.batch_size
        state = torch.zeros(n, DIM, dtype=torch.int64)
        done = torch.zeros(n, dtype=torch.bool)
        states, actions, alive, old = [], [], [], []
        with torch.no_grad():
            while True:
                logits = self.pf(self.trunk(self.eye[state].flatten(1)))
                legal = nn.functional.pad(state < SIDE - 1, (0, 1), value=True)
                logits = torch.where(legal, logits, -torch.inf)
                noise = torch.empty(n, DIM + 1).exponential_(generator=self.generator).log()
                action = (logits - noise).argmax(1)
                action = action.where(~done, DIM)
                if self.group_size:
                    old.append(logits.log_softmax(1).gather(1, action[:, None]).squeeze(1))
                states.append(state)
                actions.append(action)
                alive.append(~done)
                state = state + (action[:, None] == self.axes)
                done = done | (action == DIM)
                if bool(done.all()):
                    break
        s, a, valid = torch.stack(states, 1), torch.stack(actions, 1), torch.stack(alive, 1)
        row, column = valid.nonzero(as_tuple=True)
        here = s[row, column]
        hidden = self.trunk(self.eye[here].flatten(1))
        legal = nn.functional.pad(here < SIDE - 1, (0, 1), value=True)
        log_pf = torch.where(legal, self.pf(hidden), -torch.inf).log_softmax(1)
        log_pf = log_pf.gather(1, a[row, column, None]).squeeze(1)
        reward = corner_reward(state, SIDE).float()
        if self.group_size:
            # Steps with one legal action are no decisions.
            free = legal.sum(1) > 1
            counts = torch.zeros(n).index_add(0, row, free.float()).clamp(min=1)
            of_group = reward.view(-1, self.group_size)
            centred = of_group - of_group.mean(1, keepdim=True)
            better = (centred / (of_group.std(1, keepdim=True) + 1e-6)).flatten()[row]
            ratio = (log_pf - torch.stack(old, 1)[row, column]).exp()
            gain = torch.minimum(ratio * better, ratio.clamp(0.8, 1.2) * better)
            loss = -(gain * free / counts[row]).sum() / n
        else:
            # The move into this state; the initial state has none and counts zero.
            into = column > 0
            lower = here[into] > 0
            back = self.pb(hidden[into])[:, :DIM]
            log_pb = torch.where(lower, back, -torch.inf).log_softmax(1)
            log_pb = log_pb.gather(1, a[row[into], column[into] - 1, None]).squeeze(1)
            score = self.log_z.expand(n).index_add(0, row, log_pf)
            residual = score.index_add(0, row[into], -log_pb) - reward.log()
            loss = residual.square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if bool(torch.isfinite(loss.detach() + norm)):
            self.optimizer.step()


def make_trainer(
    policy: MLPPolicy, batch_size: int, block, rate: float = 0.0, group_size: int = 0
) -> Trainer:
    # GRPO reads reward vectors: log-rewards are left out.
    how = {"scalarization": None} if group_size else {}
    score = Scorer(policy.env, CornerReward(SIDE), **how)
    sampler = OnPolicy(
        policy, Conditions(), score, batch_size, seed=0, block=block,
        group_size=group_size or 1, keep_log_pf=bool(group_size),
    )  # fmt: skip
    settings = TrainerSettings(rate, 100 * rate, log_every=0)
    objective = PolicyGradient() if group_size else TrajectoryBalance()
    return Trainer(policy, objective, sampler, settings)


def measure(loops: dict[str, object], windows: int, iterations: int) -> dict[str, float]:
    """Median milliseconds per iteration, the loops taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(windows):
        for name, loop in loops.items():
            start = time.process_time()
            if isinstance(loop, Trainer):
                loop.run(loop.step + iterations)
            else:
                for _ in range(iterations):
                    loop.step()
            seconds[name].append((time.process_time() - start) / iterations)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def trained_policy() -> MLPPolicy:
    policy = MLPPolicy(HyperGrid(DIM, SIDE), (256, 256), backward="learned")
    make_trainer(policy, 64, step_block, 1e-3).run(300)
    return policy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--grpo", action="store_true", help="GRPO in groups of 8 instead")
    parser.add_argument("--windows", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = trained_policy().state_dict()
    group = 8 if options.grpo else 0
    for batch_size, iterations, bar in ((16, 60, 1.15), (256, 12, 1.15 if group else 1.05)):
        loops: dict[str, object] = {}
        names = ["flat loop", "trainer"] + ["trainer, compiled"] * options.compile
        for name in names:
            policy = MLPPolicy(HyperGrid(DIM, SIDE), (256, 256), backward="learned")
            policy.load_state_dict(state)
            block = compile_block() if "compiled" in name else step_block
            trainer = make_trainer(policy, batch_size, block, group_size=group)
            loops[name] = FlatLoop(batch_size, policy, group) if name == "flat loop" else trainer
        measure(loops, 1, iterations)
        times = measure(loops, options.windows, iterations)
        length = loops["trainer"].batch.lengths.double().mean()  # type: ignore[attr-defined]
        print(f"batch {batch_size}, mean length {length:.1f}, bar {bar}x")
        for name, value in times.items():
            ratio = value / times["flat loop"]
            print(f"  {name:20s} {value:8.2f} ms/iteration   {ratio:5.2f} x flat loop")


if __name__ == "__main__":
    main()
