"""The quality report of a bundle: one page for people, and the same data as JSON."""
