variable "region" {
  description = "The region's name, as in CockroachDB's localities and in deploy/kubernetes/overlays."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", var.region))
    error_message = "A region's name is a DNS label of up to 40 characters."
  }
}

variable "cell" {
  description = "The name of the region's first cell."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", var.cell))
    error_message = "A cell's name is a DNS label of up to 40 characters."
  }
}

variable "domain" {
  description = "Under which the regions' names are, in every region's DNS."
  type        = string
}

variable "cidr" {
  description = "Addresses of nodes and pods; within 10.0.0.0/8, which the network policies let through."
  type        = string

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && startswith(var.cidr, "10.") && try(tonumber(split("/", var.cidr)[1]) <= 20, false)
    error_message = "A /20 or larger within 10.0.0.0/8."
  }
}

variable "zones" {
  description = "Availability zones: etcd's, NATS's and the database's replicas are spread over them."
  type        = list(string)

  validation {
    condition     = length(var.zones) >= 3 && length(var.zones) <= 16
    error_message = "Three zones at least: with two, the loss of one is the loss of a quorum."
  }
  validation {
    condition     = length(distinct(var.zones)) == length(var.zones)
    error_message = "Each zone has a subnet of its own: name no zone twice."
  }
}

variable "orders_per_s" {
  description = "The peak that the region is sized for, other regions' share after a failover included."
  type        = number
  default     = 5000

  validation {
    condition     = var.orders_per_s > 0
    error_message = "Sized for some load."
  }
}

variable "cell_core_us" {
  description = "Processor time of the cells for an order, in microseconds (docs/scaling.md)."
  type        = number
  default     = 840
}

variable "database_core_us" {
  description = "Processor time of the database for an order, in microseconds (docs/scaling.md)."
  type        = number
  default     = 2800
}

variable "cores_per_node" {
  type    = number
  default = 16
}

variable "database_disk_gb" {
  type    = number
  default = 1000
}
