"""Recovery of a pruned model. Imports pruning, never evaluation."""
