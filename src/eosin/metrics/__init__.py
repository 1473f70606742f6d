"""Pure functions of embeddings and predictions: NumPy in, plain numbers out."""
