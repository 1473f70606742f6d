"""The state of training, kept in memory, with a neighbour, in the bucket; read by a world of any size."""
