"""What Terraform starts: `terraform-provider-cellpay` runs this module."""

from __future__ import annotations

import sys

from tf.runner import run_provider

from cellpay_provider.provider import CellpayProvider

if __name__ == "__main__":
    run_provider(CellpayProvider(), sys.argv)
