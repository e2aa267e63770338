"""The coordination store: slot map, leases, operations, policies, audit. etcd in earnest."""
