"""Who is asking, and in which role. The only place where an API key is checked."""
