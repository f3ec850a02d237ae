"""One file per graph: what p and q are."""
