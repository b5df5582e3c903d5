"""Mounts and trees on the host: the operations as values, the kernel behind them, and what this kernel can do."""
