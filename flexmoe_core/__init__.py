"""Flex-MoE (Yun et al., NeurIPS 2024, arXiv 2410.08245): the method, in PyTorch alone."""
