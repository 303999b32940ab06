"""The coordinator: its Flower ServerApp, round loop, aggregation, run store and report."""
