"""A month of a public trace through the live hub in minutes, and every micro-yuan of it counted again."""
