"""The kubelet: registers the node, runs the pods bound to it, reports, serves logs and exec."""
