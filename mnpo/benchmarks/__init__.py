"""What policies are measured by: one module per harness."""
