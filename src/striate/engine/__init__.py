"""Running things: loading models, seeds, state, records, training. Knows nothing of any method or paper."""
