"""Differential privacy and what it needs: settings, secret randomness, private gradients, and the accounting."""
