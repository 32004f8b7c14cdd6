"""Values of torch and Python as bytes, and back; TorchScript functions as things to call; exceptions as messages."""
