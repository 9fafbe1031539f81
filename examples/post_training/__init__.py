"""What the programs on tunix share: model, supervised phases, and their tasks."""
