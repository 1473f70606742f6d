"""The loss terms of DINO and DINOv2, each a function of one micro-batch and global statistics."""
