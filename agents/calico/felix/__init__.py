"""felix: what a node's kernel must hold so that its workloads are connected and protected."""
