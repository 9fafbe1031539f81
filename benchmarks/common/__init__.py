"""Shared code: search, store, intervals, tables, figures, provenance, HLO."""
