"""Fault injection: failing servers, networks and disks."""
