"""Measures a tier: speed, memory, divergence from the base, success on task suites."""
