"""What all subjects share: search, store, intervals, tables, figures, provenance."""
