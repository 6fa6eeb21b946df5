"""One self-contained HTML page about the genetics of a dataset."""
