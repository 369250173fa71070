"""CNI plugins of a node: flannel, bridge, host-local, and the runtime that calls them."""
