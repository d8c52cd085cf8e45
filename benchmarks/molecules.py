"""Speed of the molecule environment, its policies and oracles; one thread.

    python benchmarks/molecules.py

Figures are per second of this process's CPU time, the best of several repetitions: other work on
the machine can only slow them down.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from gflow.envs.molecules import FragmentMolecules, MoleculeOracle
from gflow.envs.molecules.diversity import fingerprints, tanimoto
from gflow.mdp import Condition, States, evaluate
from gflow.policies.tree import TreePolicy
from gflow.sampling.rollout import rollout

NEEDS = frozenset({"log_pb_total", "log_z"})


def best(run: Callable[[], int], repeats: int) -> float:
    """Largest number of things per second that `run` (which returns how many it did) reached."""
    run()
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        done = run()
        rates.append(done / (time.process_time() - start))
    return max(rates)


def even(mask: Tensor, generator: torch.Generator) -> Tensor:
    """A legal action of each row, all equally likely."""
    noise = torch.empty(mask.shape).uniform_(generator=generator)
    return (noise * mask).argmax(1)


def uniform_steps(env: FragmentMolecules, n: int, generator: torch.Generator) -> tuple[int, States]:
    """Walk n molecules to their ends; the number of steps of unfinished rows, and the ends."""
    states, steps = env.initial(n), 0
    while (going := int((~states.done).sum())) > 0:
        slot = even(env.forward_mask(states), generator)
        entry = even(env.forward_mask(states, slot), generator)
        states = env.step(states, torch.stack([slot, entry], 1))
        steps += going
    return steps, states


def training(
    policy: TreePolicy, n: int, generator: torch.Generator, lengths: list[float]
) -> Callable[[], int]:
    """One trajectory-balance iteration towards made-up rewards, for `best`; notes mean lengths."""
    env, optimizer = policy.env, torch.optim.Adam(policy.parameters(), 1e-4)
    condition = Condition(torch.rand(n, 32, generator=generator), None, torch.ones(n))

    def iteration() -> int:
        batch = rollout(policy, env.initial(n), condition, generator)
        lengths.append(float(batch.lengths.float().mean()))
        log_reward = torch.randn(n, generator=generator)
        now = evaluate(policy, batch, NEEDS)
        assert now.log_z is not None and now.log_pb is not None
        loss = now.log_z + now.log_pf.sum(1) - now.log_pb.sum(1) - log_reward
        optimizer.zero_grad()
        loss.square().mean().backward()
        optimizer.step()
        return n

    return iteration


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    env = FragmentMolecules()
    row = "{:72} {:>12} {:>10}".format
    print(row("one thread, per second of CPU time", "measured", "bar"))
    for n, bar in ((64, ""), (1024, "100,000"), (16384, "")):
        rate = best(lambda n=n: uniform_steps(env, n, generator)[0], 7)
        print(row(f"environment steps, uniform policy, batch {n}", f"{rate:,.0f}", bar))
    for name, bar, settings in (
        ("tree", "500", {}),
        ("mlp", "2,000", {"trunk": "mlp", "hidden": 256, "layers": 2}),
    ):
        for backward in ("uniform", "paths"):
            policy = TreePolicy(env, 32, backward=backward, **settings)
            size = sum(p.numel() for p in policy.parameters())
            lengths: list[float] = []
            rate = best(training(policy, 256, generator, lengths), 7)
            steps = sum(lengths) / len(lengths)
            label = (
                f"trajectories of {steps:.1f} steps, {name}, {size:,} parameters, {backward} P_B"
            )
            print(row(label, f"{rate:,.0f}", bar))

    states = uniform_steps(env, 1024, generator)[1]
    smiles = env.decode(states)
    few = smiles[:128]

    def counted(call: Callable[[], object], n: int) -> Callable[[], int]:
        return lambda: (call(), n)[1]

    part = states.rows(torch.arange(256))
    bits = fingerprints(smiles)
    rows: list[tuple[str, Callable[[], object], int, str]] = [
        ("path counts, 256 terminal states at once", lambda: env.log_n_paths(part), 256, ""),
        ("decode to canonical SMILES", lambda: env.decode(states), 1024, "1,600"),
        ("encode from SMILES", lambda: env.encode(few), 128, ""),
        ("Morgan fingerprints", lambda: fingerprints(smiles), 1024, ""),
        ("Tanimoto pairs", lambda: tanimoto(bits, bits), 1024**2, "22,000,000"),
    ]
    for spec in ("qed", "sa", "logp:1..4", "tpsa:40..90", "mw:200..450", "similar:CCO", "qed,sa"):
        oracle = MoleculeOracle.parse(spec)
        rows.append((f"oracle {spec}", lambda oracle=oracle: oracle(few), 128, ""))
    for label, call, n, bar in rows:
        print(row(label, f"{best(counted(call, n), 3):,.0f}", bar))


if __name__ == "__main__":
    main()
