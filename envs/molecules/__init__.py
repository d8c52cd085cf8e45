"""Molecules: assembly from fragments, vocabularies, oracles, diversity."""

from gflow.envs.molecules.environment import FragmentMolecules, MoleculeObservation
from gflow.envs.molecules.fragmentation import Fragmentation, fragment_molecules
from gflow.envs.molecules.oracles import MoleculeOracle
from gflow.envs.molecules.vocabulary import Vocabulary

__all__ = [
    "FragmentMolecules",
    "Fragmentation",
    "MoleculeObservation",
    "MoleculeOracle",
    "Vocabulary",
    "fragment_molecules",
]
