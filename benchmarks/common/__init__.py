"""Shared code: search, store, text, intervals, tables, figures, provenance."""
