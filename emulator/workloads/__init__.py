"""What pods run: programs over the emulated network, and the images that name them."""
