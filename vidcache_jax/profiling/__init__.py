"""Which heads of a model look where: measured over rollouts, classified, drawn."""
