"""kube-proxy in iptables mode: services and endpoints compiled into a node's tables.

Thinking: names, model, topology, ruleset, modern, release_1_5, desired, conntrack.  Shell: daemon
(``run_kubeproxy``; ``Proxier`` brings one namespace's tables up to date).
"""
