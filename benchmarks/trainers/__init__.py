"""Ember in other people's training loops: `make trainers`."""
