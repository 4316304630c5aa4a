"""Scripts that regenerate every published number."""
