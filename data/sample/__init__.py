"""A drawn catalogue of clothes and accessories: the structure and variety of a real one, and none of its secrets."""
