"""Our functions inside other frameworks, differentiable there: a module for each framework."""
