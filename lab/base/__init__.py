"""What everything stands on: errors, output, files."""
