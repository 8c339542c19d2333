"""Figures of a trained run, per task, and likelihoods of held-out data."""
