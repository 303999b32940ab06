"""Masked sums (Bonawitz et al., "Practical Secure Aggregation", CCS 2017, double masking): no Flower, no files of
patients; keys, shares, masks, and what each side refuses.
"""
