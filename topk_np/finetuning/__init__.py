"""Fine-tuning of language models: texts, steps and the command, on the loop of `training`."""
