"""Tasks: molecules."""

from __future__ import annotations

from torch import nn

from gflow.config import PolicySettings

from .registry import Task, register


@register
def molecules(
    rewards: str = "qed,sa",
    vocabulary: str | None = None,
    preset: str = "irreducible",
    max_fragments: int = 5,
    min_fragments: int = 2,
) -> Task:
    """Drug-like molecules assembled from fragments.

    Args:
        rewards: qed, sa, logp:1..4, tpsa:40..90, mw:200..450, rings:2..4, sp3, similar:SMILES,
            guacamol:TASK, seh:FILE, vina:FILE or package.module:function, separated by commas.
        vocabulary: file of fragments, see `gflow fragments`; the built-in ones by default.
        preset: full or irreducible (no fragment is a composite of others).
        max_fragments: largest number of fragments.
        min_fragments: smallest number of fragments.
    """
    from gflow.envs.molecules import FragmentMolecules, Vocabulary
    from gflow.envs.molecules.oracles import MoleculeOracle
    from gflow.policies.tree import TreePolicy

    fragments = Vocabulary.load(vocabulary) if vocabulary is not None else None
    env = FragmentMolecules(fragments, preset, max_fragments, min_fragments)

    def make_policy(
        settings: PolicySettings, condition_size: int, flow: bool, energy: bool, seed: int
    ) -> nn.Module:
        if energy:
            raise ValueError("molecules have no network for learned energies")
        return TreePolicy(
            env,
            condition_size,
            hidden=settings.hidden or 128,
            layers=settings.layers or 3,
            backward=settings.backward or "paths",  # type: ignore[arg-type]
            flow=flow,
            seed=seed,
        )

    oracle = MoleculeOracle.parse(rewards)
    # A weighted mean of K rewards moves K times less than each of them.
    beta = f"uniform:{16 * len(oracle.rewards)}..{80 * len(oracle.rewards)}"
    return Task(env, oracle, make_policy, kind="molecule", inverse_temperature=beta)
