"""Complete run configurations, one YAML file each."""
