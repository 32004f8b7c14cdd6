"""Training that goes on while its trainers are killed."""
