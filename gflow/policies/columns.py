"""Denoising paths whose rows are in step, walked and evaluated by columns.

In column t every row is at the same step: the schedule is read once for a column, and nothing is
looked up by row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gflow.kernels import AffineGaussian
from gflow.mdp import Condition, Evaluation, States, Trajectories
from gflow.sampling.rollout import Block, behaviour_log_prob

if TYPE_CHECKING:
    from gflow.policies.denoiser import DenoiserPolicy

BY_COLUMNS = frozenset({"log_pb", "log_pb_total", "log_z"})
"""What `evaluate_columns` can deliver beside log P_F."""


def walk_columns(
    policy: DenoiserPolicy,
    states: States,
    first: int,
    condition: Condition,
    noise: Tensor,
    temperature: float,
    keep_log_p: bool,
) -> Block:
    """`step_block` of rows that are all at step `first`: coefficients are plain numbers."""
    env, n, steps = policy.env, states.n, len(noise)
    x = policy.points(states.data)
    noise, spread = noise.to(x.dtype), math.sqrt(temperature)
    tables = env.tables[:, first : first + steps].to(x.dtype)
    predict = policy.along(tables[-1], condition.encoding.to(x.dtype))
    walked, means = [x], []
    numbers = zip(tables[:3].T.tolist(), predict, noise.unbind(), strict=True)
    for (a, b, s), at_time, drawn in numbers:
        if env.source and first == 0 and len(walked) == 1:
            mean = torch.zeros_like(x)
        else:
            mean = a * x + b * at_time(x)
        x = torch.add(mean, drawn, alpha=s * spread)
        walked.append(x)
        if keep_log_p:
            means.append(mean)
    log_p = None
    if keep_log_p:
        std = env.wide(tables[2])
        kernel = AffineGaussian(torch.stack(means, 1), std, policy.reduction, rows=2)
        log_p = behaviour_log_prob(kernel, torch.stack(walked[1:], 1), 0.0, temperature)
    step = states.step[:1] + steps
    end = States(x, step.expand(n), (step == env.max_steps).expand(n))
    active = torch.ones(n, steps, dtype=torch.bool)
    return Block(end, torch.stack(walked[:-1], 1), x.new_zeros(n, steps, 0), active, log_p)


def evaluate_columns(
    policy: DenoiserPolicy, batch: Trajectories, needs: frozenset[str]
) -> Evaluation:
    """`gflow.mdp.evaluate` of paths without padding; `needs` is a subset of `BY_COLUMNS`."""
    env, (n, steps) = policy.env, batch.valid.shape
    env.check(batch)
    points = policy.points(batch.states)
    before, after = points[:, :-1], points[:, 1:]
    tables = env.table("tables", points.device, points.dtype)[:, :steps]
    a, b, s = (env.wide(column) for column in tables[:3])
    # The draw of the starting noise asks no network.
    blank = int(env.source > 0)
    seen = before[:, blank:]
    output = policy.predict(
        seen.flatten(0, 1),
        tables[-1, blank:].expand(n, -1).flatten(),
        batch.condition.encoding.unsqueeze(1).expand(-1, steps - blank, -1).flatten(0, 1),
    ).reshape(seen.shape)
    if blank:
        output = torch.cat([torch.zeros_like(before[:, :1]), output], 1)
    forward = AffineGaussian(a * before + b * output, s, policy.reduction, rows=2)
    log_pf, log_pb = forward.log_prob(after), None
    if needs & {"log_pb", "log_pb_total"}:
        undoing = env.table("undoing", points.device, points.dtype)[:, 1 : steps + 1]
        a, s = (env.wide(column) for column in undoing)
        log_pb = AffineGaussian(a * after, s, policy.reduction, rows=2).log_prob(before)
    log_z = policy.log_z(batch.condition) if "log_z" in needs else None
    return Evaluation(log_pf, log_pb, None, log_z, batch.valid)
