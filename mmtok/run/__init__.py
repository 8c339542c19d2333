"""Recipes and run folders: making a run, opening it, asking its model."""
