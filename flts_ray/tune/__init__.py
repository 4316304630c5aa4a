"""The study: which trials, how one trial runs, and the Ray Tune shell around them."""
