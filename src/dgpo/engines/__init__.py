"""Engines: thin plug-ins that bring the objectives into other frameworks. Importing this room imports none of them."""
