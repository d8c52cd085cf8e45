"""Molecules: assembly from fragments, oracles, diversity."""

from gflow.envs.molecules.environment import FragmentMolecules, MoleculeObservation
from gflow.envs.molecules.oracles import MoleculeOracle
from gflow.envs.molecules.vocabulary import Vocabulary

__all__ = ["FragmentMolecules", "MoleculeObservation", "MoleculeOracle", "Vocabulary"]
