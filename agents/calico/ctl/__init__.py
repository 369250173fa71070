"""calicoctl: Calico's resources, BGP status and IPAM from the command line.

Thinking: tables, columns, documents, node_status.  Shell: commands, ipam, main (``run_calicoctl``).
"""
