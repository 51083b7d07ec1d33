"""The assets, one module per group. Each asset is a thin function over the package's plain ones."""
