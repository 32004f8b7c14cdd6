"""Model-parallel training of a small classifier: two halves on two workers, gradients and optimizer across them."""
