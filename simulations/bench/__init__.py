"""What a training step costs: against a plain reference, against the multiply-adds, and with many modalities."""
