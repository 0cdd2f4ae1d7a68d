"""Everything that is measured, kept and shown: zero-shot, perplexity, cost, stability, results, tracking."""
