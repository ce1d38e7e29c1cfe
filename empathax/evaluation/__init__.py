"""What a model says and how good it is: generation, scores of given replies."""
