"""The commands of a node and of a pod, over one namespace of the emulated kernel."""
