"""The API server: Kubernetes objects in etcd, served to kubectl and to the agents."""
