"""What tests and benchmarks share: small models made on the spot, a hub, a simulated run, a real llama.cpp."""
