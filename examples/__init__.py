"""Training programs to copy from; run them from the root of the repository."""
