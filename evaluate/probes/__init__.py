"""Probes of frozen features: linear, kNN, few labels, transfer."""
