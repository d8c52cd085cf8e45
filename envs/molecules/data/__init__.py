"""Data files of the molecule environment."""
