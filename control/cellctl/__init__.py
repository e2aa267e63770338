"""cellctl: step 1 of a failover's walk. The SRE's one tool."""
