"""What a training step costs each chip of a TPU pod, by the TPU compiler."""
