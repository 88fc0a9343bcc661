"""The stack that runs on one machine: a private broker and the services as child processes."""
