"""Volume fusion: an encoder learns to tell in which share two crops of a scan were mixed."""
