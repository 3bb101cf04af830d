"""Algorithm 1: losses, a step, and the state that it changes."""
