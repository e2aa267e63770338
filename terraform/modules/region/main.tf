# What a region needs of whatever cloud it is in: addresses, names, machines, and the values of its
# Kubernetes overlay. No provider: the platform's own module makes networks and clusters of these
# outputs, and so does not differ from one cloud to the next.

terraform {
  required_version = ">= 1.6"
}

locals {
  # A zone each, for pods and nodes; pods' addresses are routed between regions.
  subnets = { for number, zone in var.zones : zone => cidrsubnet(var.cidr, 4, number) }
  host    = "${var.region}.${var.domain}"

  # At half load, by the model of docs/scaling.md.
  cells_cores    = ceil(var.orders_per_s * var.cell_core_us / 1e6 * 2)
  database_cores = ceil(var.orders_per_s * var.database_core_us / 1e6 * 2)

  pools = {
    cells = {
      cores = var.cores_per_node
      nodes = max(length(var.zones), ceil(local.cells_cores / var.cores_per_node))
      # A pod that joins a cell asks for one core: a node more is what a burst finds ready.
      nodes_max = max(length(var.zones), ceil(local.cells_cores / var.cores_per_node)) * 2 + 1
      disk_gb   = 50
    }
    database = {
      cores     = var.cores_per_node
      nodes     = max(length(var.zones), ceil(local.database_cores / var.cores_per_node))
      nodes_max = max(length(var.zones), ceil(local.database_cores / var.cores_per_node))
      disk_gb   = var.database_disk_gb
    }
    base = {
      cores     = 4
      nodes     = length(var.zones)
      nodes_max = length(var.zones)
      disk_gb   = 100
    }
  }
}
