"""Huge tables: the cost of a lazy step, and the gain of a table of n-grams."""
