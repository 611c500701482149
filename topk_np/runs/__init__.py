"""Training runs, each in a folder of its own: classifiers from scratch, and fine-tuning."""
