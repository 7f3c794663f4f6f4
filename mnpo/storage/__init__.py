"""What lies on disk: artifacts with manifests, records, work that survives a kill, hub sources, code digests."""
