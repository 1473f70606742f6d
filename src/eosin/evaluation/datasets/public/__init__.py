"""Public datasets in the layouts in which they are published, with their splits and counts: one file each."""
