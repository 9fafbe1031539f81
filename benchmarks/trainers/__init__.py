"""Ember in existing training loops: `make trainers`."""
