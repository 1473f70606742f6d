"""The processes of an elastic training: started fast, watched, brought together after a loss."""
