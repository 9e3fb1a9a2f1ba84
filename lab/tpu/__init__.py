"""A tool: compiles the steps with Google's TPU compiler, without a TPU."""
