//! Test hosts: network, mount, cgroup and UTS namespaces over a cgroup subtree, joined by veth.
