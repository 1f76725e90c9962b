"""Two lines for users of Hugging Face Trainer, Lightning and Accelerate; each module alone imports its library."""
