"""Engine of the training: the step, and what it is made of, without the loop around it."""
