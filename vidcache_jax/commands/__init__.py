"""One module per `vidcache` command."""
