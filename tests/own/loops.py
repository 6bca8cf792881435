"""Training loops of anybody's."""
