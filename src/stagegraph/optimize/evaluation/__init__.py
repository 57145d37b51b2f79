"""Is it good? Metrics, evaluation, comparison, blame and judges."""
