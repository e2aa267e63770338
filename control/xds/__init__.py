"""The xDS server: step 6 of a failover's walk. Snapshots (what to say) apart from streams (how)."""
