"""Engines: plug-ins that bring the objectives into other frameworks. Importing this package imports none of them."""
