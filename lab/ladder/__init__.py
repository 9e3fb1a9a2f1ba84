"""The parts of the other recipes."""
