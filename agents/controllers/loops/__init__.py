"""The loops: informers in, work queues, pure plans, actions out.  Shell only."""
