"""Codes with labels of anybody's."""
