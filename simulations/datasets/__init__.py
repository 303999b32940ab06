"""Public and generated data sets, written as the folders that hospitals have."""
