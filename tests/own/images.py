"""Images of any size and kind."""
