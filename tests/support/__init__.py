"""What several tests share: sample data, faults, servers, makers of inputs."""
