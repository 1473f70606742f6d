"""A run's configuration as a JobSet, and its life on a cluster: create, adopt, watch, explain, cancel."""
