"""A hospital: its manifest, its data, its local state, its Flower ClientApp."""
