"""Everything beyond DavidNet; attaches to the four files at the root from outside."""
