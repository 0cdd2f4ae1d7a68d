"""How flat the loss is around a model's weights: curvature, gradient noise, and what displacements of the weights cost."""
