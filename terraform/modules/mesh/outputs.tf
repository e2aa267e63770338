output "regions" {
  description = "What the platform makes in each region."
  value = {
    for name in terraform_data.contract.output : name => {
      subnets    = module.region[name].subnets
      node_pools = module.region[name].node_pools
      names      = module.region[name].names
    }
  }
}

output "peerings" {
  description = "Pairs of regions whose networks are routed to each other."
  value       = local.pairs
}

output "open_between_regions" {
  description = "Ports that regions open to each other, as network-policies.yaml does."
  value = {
    etcd        = [2379, 2380]
    cells       = range(7400, 7417)
    control     = [7500]
    cockroachdb = [26257]
  }
}

output "overlays" {
  description = "Values of deploy/kubernetes/overlays/<region>/kustomization.yaml."
  value = {
    for name in local.names : name => {
      REGION          = name
      CELL            = var.regions[name].cell
      DOMAIN          = var.domain
      ETCD            = local.etcd
      INITIAL_CLUSTER = local.etcd_peers
      JOIN            = local.cockroachdb
      OTLP_ENDPOINT   = var.otlp_endpoint
    }
  }
}

output "database_regions" {
  description = "As deploy/cockroachdb/bootstrap.sql adds them; the first one is the primary."
  value       = local.names
}
