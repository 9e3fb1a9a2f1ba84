"""A tool: makes the notebook and the cell for Colab."""
