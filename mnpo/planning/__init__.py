"""What will run, why, and at what cost: a configuration unrolled. No torch."""
