"""What a caller of the control plane says beside a request."""

from __future__ import annotations

# The ID of what a second person agreed to.
APPROVAL_HEADER = "x-cellpay-approval"
# "yes": without a second person, and loudly.
BREAK_GLASS_HEADER = "x-cellpay-break-glass"
