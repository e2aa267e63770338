# The mesh's regions as one: what each lets in from the others, and the values of their overlays.

terraform {
  required_version = ">= 1.6"
}

module "region" {
  source   = "../region"
  for_each = var.regions

  region           = each.key
  cell             = each.value.cell
  cidr             = each.value.cidr
  zones            = each.value.zones
  domain           = var.domain
  orders_per_s     = ceil(var.orders_per_s / (length(var.regions) - 1))
  database_disk_gb = var.database_disk_gb
}

locals {
  names = sort(keys(var.regions))
  pairs = flatten([
    for place, one in local.names : [
      for other in slice(local.names, place + 1, length(local.names)) : { one = one, other = other }
    ]
  ])
  # First and last address as numbers, to see that no two regions overlap.
  spans = {
    for name, region in var.regions : name => {
      first = sum([for place, part in split(".", cidrhost(region.cidr, 0)) : tonumber(part) * pow(256, 3 - place)])
      size  = pow(2, 32 - tonumber(split("/", region.cidr)[1]))
    }
  }
  etcd        = join(",", [for name in local.names : module.region[name].etcd_client])
  etcd_peers  = join(",", [for name in local.names : module.region[name].etcd_peer])
  cockroachdb = join(",", [for name in local.names : module.region[name].cockroachdb_join])
}

resource "terraform_data" "contract" {
  input = local.names

  lifecycle {
    precondition {
      condition     = length(distinct([for region in var.regions : region.cell])) == length(var.regions)
      error_message = "A cell is in one region: name no cell twice."
    }
    precondition {
      condition = alltrue([
        for pair in local.pairs :
        local.spans[pair.one].first + local.spans[pair.one].size <= local.spans[pair.other].first ||
        local.spans[pair.other].first + local.spans[pair.other].size <= local.spans[pair.one].first
      ])
      error_message = "Pods of all regions are routed to each other: their addresses must not overlap."
    }
  }
}
