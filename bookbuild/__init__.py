"""What `make` calls: chapters, running them, staging, the site."""
