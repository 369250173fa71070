"""HTTP/2 as a protocol core (RFC 9113) with its header compression (RFC 7541)."""
