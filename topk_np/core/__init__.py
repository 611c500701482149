"""The algorithm: read `passes`, then `scores` and `keep`."""
