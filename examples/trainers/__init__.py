"""Ember in the trainers that people use: one file each, to copy into one's own tree."""
