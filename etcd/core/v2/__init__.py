"""The store of the v2 keys API (etcd --enable-v2): a tree with an index of its own."""
