"""Countdown puzzles for steerkit: data set, verifier and reward, each advertised as ``countdown``."""
