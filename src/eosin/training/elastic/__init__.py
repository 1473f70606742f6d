"""The processes of an elastic training: started, watched, brought together after a loss."""
