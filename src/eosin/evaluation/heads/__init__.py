"""Heads that are trained on frozen features: linear, attention over patches, convolutional decoder."""
