"""Data sets as published, and anybody's own."""
