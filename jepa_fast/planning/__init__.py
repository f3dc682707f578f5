"""What a world model is good for: planners, the protocols that they are measured by, and what a person sees of it."""
