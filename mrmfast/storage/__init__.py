"""Where bytes come from: a folder or an object store, through retries and the node's cache."""
