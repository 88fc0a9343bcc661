"""What turns a handler into a service: settings, logging, metrics, gRPC server, worker loop, shutdown."""
