"""What the weights that stay take over from those that leave, in closed form, at the moment of a cut."""
