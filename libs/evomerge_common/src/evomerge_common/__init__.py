"""What every EvoMerge service shares: the domain, the ports, their adapters, and the runtime around them."""

__version__ = "0.1.0"
