"""flannel: a subnet for each node from etcd, and the kernel state that joins the subnets.

Thinking: config, lease, leaser, view, backend, rules, subnetenv.  Shell: registry (etcd), netlink
(the kernel), daemon (``run_flannel``).
"""
