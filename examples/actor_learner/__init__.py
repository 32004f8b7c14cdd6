"""Reinforcement learning with one learner and several actors; see `main`."""
