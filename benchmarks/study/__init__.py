"""The study: which optimizer of token tables is best, at small scale."""
