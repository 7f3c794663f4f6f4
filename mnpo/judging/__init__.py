"""The one client that talks to judges and other endpoints."""
