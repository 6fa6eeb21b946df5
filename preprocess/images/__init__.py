"""Image files -> image shards: sources, parts, finalisation; a folder for each kind of image."""
