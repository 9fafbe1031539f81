"""Memory, bytes accessed and time of one optimizer step on one token table."""
