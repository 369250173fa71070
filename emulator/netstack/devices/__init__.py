"""The network devices of a namespace, one kind a file."""
