"""Reconciliation from the control plane's side: who asks for runs, who decides cases."""
