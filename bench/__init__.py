"""Benchmarks: each checks against the reference before it times."""
