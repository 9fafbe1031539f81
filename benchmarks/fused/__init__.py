"""The fused variant of the rule against the exact one."""
