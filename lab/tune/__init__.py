"""Tuning hyperparameters on images held out of the training set."""
