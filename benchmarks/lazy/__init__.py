"""Lazy rows: what a step costs, and what a table of n-grams is good for."""
