"""A change of the optimizer or of the vocabulary during a run."""
