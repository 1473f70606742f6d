"""Index of the slides: one row a slide, its tissue and its place in the splits, and the checks of them."""
