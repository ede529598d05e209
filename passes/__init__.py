"""Passes over captured graphs: each takes a Graph and returns a new one; none mutates its input."""
