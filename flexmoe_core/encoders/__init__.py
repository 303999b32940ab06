"""Encoders: one file per kind of modality."""
