"""Costs of a training step on each chip of a TPU pod, by the TPU compiler."""
