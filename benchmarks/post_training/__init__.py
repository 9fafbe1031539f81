"""Ember against AdamW on the token tables after pretraining, with tunix."""
