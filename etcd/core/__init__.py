"""The thinking parts of etcd: storage, transactions, leases, watches, wire codecs.  No IO."""
