"""The loss terms of DINO and DINOv2, each a function of one microbatch and global statistics."""
