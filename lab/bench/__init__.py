"""A tool: measures our step and input against rivals on the CPU."""
