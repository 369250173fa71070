"""Calico's address management: blocks of addresses per host, kept in etcd."""
