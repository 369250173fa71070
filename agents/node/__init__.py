"""One node: composes the kernel, the underlay, flannel, the kubelet and kube-proxy."""
