"""Tasks: network cells."""

from __future__ import annotations

from .registry import Task, data_file, flat_policy, names, register


@register
def nas_bench_201(
    path: str = "",
    dataset: str = "cifar10",
    split: str = "test",
    epochs: int = 12,
    rewards: str = "accuracy,flops,parameters",
) -> Task:
    """Network cells: accuracy after 12 epochs against FLOPs and parameters.

    Args:
        path: nas_bench_201.parquet, by default that in the folder GFLOW_DATA; or a file of the
            package nats_bench.
        dataset: cifar10, cifar100 or imagenet16.
        split: test or val.
        epochs: 12, or 200 with a file of nats_bench.
        rewards: accuracy, flops, parameters, separated by commas.
    """
    from gflow.envs.nas import NASCell
    from gflow.envs.nas.oracle import nas_bench_201

    env = NASCell()
    file = data_file(path, "nas_bench_201.parquet")
    oracle = nas_bench_201(file, dataset, split, epochs, names(rewards))
    return Task(env, oracle, flat_policy(env))


@register
def nas_digits(rewards: str = "accuracy,multiply_adds,depth") -> Task:
    """Network cells: accuracy on scikit-learn's digits against cost, from a table that is shipped.

    Args:
        rewards: accuracy, multiply_adds, parameters, depth, separated by commas.
    """
    from gflow.envs.nas import NASCell
    from gflow.envs.nas.digits import digits_table

    env = NASCell()
    return Task(env, digits_table(names(rewards)), flat_policy(env))


@register
def nas_training(
    rewards: str = "accuracy,multiply_adds,depth", epochs: int = 10, seed: int = 0
) -> Task:
    """Network cells trained on digits when they are asked for: a slow oracle that is real.

    Args:
        rewards: accuracy, multiply_adds, parameters, depth, separated by commas.
        epochs: how long each is trained.
        seed: of the networks' weights and batches.
    """
    from gflow.envs.nas import NASCell
    from gflow.envs.nas.digits import DigitsTraining, representative

    env = NASCell()
    oracle = DigitsTraining(names(rewards), epochs, seed)
    return Task(env, oracle, flat_policy(env), key=representative)
