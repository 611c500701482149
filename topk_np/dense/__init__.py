"""The dense functions: every key takes part. What top-k is measured against."""
