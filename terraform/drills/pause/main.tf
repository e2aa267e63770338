# A cell stands still and holds its connections: a grey failure; it wakes deposed.
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
  name  = "pause"
  fault = "pause"
  cell = "c"

  observe_s = var.observe_s
  reason    = "a planned drill"
}

output "during" {
  value = cellpay_drill.this.during
}

output "report" {
  value = cellpay_drill.this.report
}
