"""A cluster as a whole: what it should be, where it lives, who starts and watches its processes."""
