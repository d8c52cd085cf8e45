"""Tasks: network cells."""

from __future__ import annotations

from .registry import Task, data_file, flat_policy, register


@register
def nas_bench_201(path: str = "", dataset: str = "cifar10", split: str = "test") -> Task:
    """Network cells: accuracy after 12 epochs against FLOPs and parameters.

    Args:
        path: nas_bench_201.parquet; by default that in the folder GFLOW_DATA.
        dataset: cifar10, cifar100 or imagenet16.
        split: test or val.
    """
    from gflow.envs.nas import NASCell
    from gflow.envs.nas.oracle import nas_bench_201

    env = NASCell()
    oracle = nas_bench_201(data_file(path, "nas_bench_201.parquet"), dataset, split)
    return Task(env, oracle, flat_policy(env))
