"""Published models in NumPy, run dense or with top-k: one file per family."""
