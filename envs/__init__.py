"""Environments: batched MDPs, one room per domain, each with its own oracles."""

if __name__ != "gflow.envs":
    raise ImportError("import gflow.envs, not envs")
