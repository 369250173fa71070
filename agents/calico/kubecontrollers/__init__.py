"""calico-kube-controllers: what keeps Calico's datastore in step with Kubernetes."""
