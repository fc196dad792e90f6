"""Float64 NumPy oracles, one file per op family; nothing here imports convgrad."""
