"""Many runs: a grid of objectives, weights and seeds, trained, scored and shown on one page."""
