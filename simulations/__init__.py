"""Federations on one machine: datasets, engines, baselines and studies."""
