variable "regions" {
  description = "Region to its cell, addresses and zones."
  type = map(object({
    cell  = string
    cidr  = string
    zones = list(string)
  }))

  validation {
    condition     = length(var.regions) >= 3
    error_message = "SURVIVE REGION FAILURE and etcd's quorum need three regions."
  }
}

variable "domain" {
  type = string
}

variable "otlp_endpoint" {
  description = "Where traces go; empty: none are recorded."
  type        = string
  default     = ""
}

variable "orders_per_s" {
  description = "The peak of the whole mesh; the regions that are left carry it when one is gone."
  type        = number
  default     = 10000
}

variable "database_disk_gb" {
  type    = number
  default = 1000
}
