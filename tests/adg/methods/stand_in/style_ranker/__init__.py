"""A stand-in for the package scar-tool: its interface as it is documented, another small ranker."""
