"""What a user would pick instead of the federation, predicting the same test patients."""
