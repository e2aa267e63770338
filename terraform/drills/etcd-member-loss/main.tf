# An etcd member is killed. A mesh of one member loses all of etcd: payments go on.
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
  name  = "etcd-member-loss"
  fault = "etcd_member_loss"

  observe_s = var.observe_s
  reason    = "a planned drill"
}

output "during" {
  value = cellpay_drill.this.during
}

output "report" {
  value = cellpay_drill.this.report
}
