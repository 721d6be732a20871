"""Which parts of a model keep which precision, and why."""
