"""Beside packages that people use, each in an environment of its own: see README.md."""
