"""Kinds of modality: what study.toml declares of each, and how its values become numbers. One file per kind."""
