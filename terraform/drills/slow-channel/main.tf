# A merchant's webhook endpoint takes three seconds: payments do not wait for it.
#
#   terraform apply     checks the steady state, injects, checks again
#   terraform destroy   heals, checks once more, leaves a report (Markdown and JSON)

terraform {
  required_providers {
    cellpay = { source = "cellpay.local/cellpay/cellpay" }
  }
}

variable "data" {
  description = "The mesh's directory."
  default     = ".cellpay"
}

variable "observe_s" {
  description = "Seconds until the fault is judged."
  default     = 10
}

provider "cellpay" {
  data = var.data
}

resource "cellpay_drill" "this" {
  name  = "slow-channel"
  fault = "slow_channel"
  latency_ms         = 3000
  during_success_min = 0.99

  observe_s = var.observe_s
  reason    = "a planned drill"
}

output "during" {
  value = cellpay_drill.this.during
}

output "report" {
  value = cellpay_drill.this.report
}
