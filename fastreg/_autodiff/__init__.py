"""Ports: penalties that a framework differentiates or traces, and which of them an array needs."""
