"""What a piece of work costs: tokens, seconds, disk and judge calls, from parameters and tokens (docs/costs.md).

Bytes, seconds, FLOP/s and US dollars; M and G are powers of ten. Pure but for `calibration`, which reads manifests.
"""
