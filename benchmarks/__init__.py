"""Times, bytes, FLOPs, shares of the machine's limits, ratios to peers: ``python -m benchmarks``."""
