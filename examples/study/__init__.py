"""What `examples.optimizer_study` is made of: arms, one run, stages, records."""
