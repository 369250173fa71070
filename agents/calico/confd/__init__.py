"""confd: from Calico's resources to what a node's BGP speaker is told.

Thinking: state (what was read), peering and services (who and what), plan (one node's whole
configuration), policy (its filters), speaker (for agents/bird) and render (as BIRD's files).
Shell: daemon.
"""
