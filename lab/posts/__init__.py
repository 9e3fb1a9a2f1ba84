"""The experiments of "How to train your ResNet": what each post claims beside its recipes, and whether it holds."""
