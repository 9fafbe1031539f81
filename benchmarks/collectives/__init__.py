"""Collectives of a step on sharded token tables."""
