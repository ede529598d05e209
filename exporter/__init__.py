"""Model directory to bundle."""
