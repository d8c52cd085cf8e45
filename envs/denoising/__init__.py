"""Denoising as an MDP: step samplers, the environment, target energies."""
