"""Shared code: command, search, store, text, intervals, tables, figures, provenance."""
