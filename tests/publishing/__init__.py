"""Publishing the explorer as a folder of files."""
