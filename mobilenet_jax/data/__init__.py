"""Data: sources (where examples are), preprocessing (what happens to one), pipeline (batches of them)."""
