"""What a step on sharded token tables communicates."""
