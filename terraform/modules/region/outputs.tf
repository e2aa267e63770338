output "subnets" {
  description = "Zone to addresses."
  value       = local.subnets
}

output "node_pools" {
  description = "Machines by what runs on them."
  value       = local.pools
}

output "names" {
  description = "Names that must resolve in every region, and what they lead to."
  value = {
    "etcd.${local.host}"          = "load balancer of the service etcd"
    "*.cockroachdb.${local.host}" = "pods of the StatefulSet cockroachdb"
    "edge.${local.host}"          = "load balancer of the service edge"
  }
}

output "etcd_client" {
  value = "etcd.${local.host}:2379"
}

output "etcd_peer" {
  value = "${var.region}=https://etcd.${local.host}:2380"
}

output "cockroachdb_join" {
  value = "cockroachdb-0.cockroachdb.${local.host}:26257"
}

output "cockroachdb_locality" {
  value = "region=${var.region}"
}
