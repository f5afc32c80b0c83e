"""Images: stored sets, real images from disk, and sources that a refiner draws from."""
