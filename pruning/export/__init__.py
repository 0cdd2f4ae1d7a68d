"""Pruned models in the formats of other programs: `python -m pruning.export <checkpoint> <file>`."""
