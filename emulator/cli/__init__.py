"""podwire's verbs, one file each; ``main`` parses and dispatches."""
