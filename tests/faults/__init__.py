"""Failures on purpose: servers, networks and disks at their worst."""
