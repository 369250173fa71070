"""Calico on one node and in the control plane: datastore, IPAM, CNI, confd, felix, controllers."""
