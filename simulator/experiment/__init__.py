"""Experiments: users in arms, effects with their intervals, power, interleaving."""
