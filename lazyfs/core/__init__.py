"""Modules that every part of lazyfs may use: devices, ranges, options, errors, addresses."""
