"""What is on disk: manifest, image shards, genetics, checksums, pseudonyms. Neither network nor PyTorch."""
