"""Channels: banks and networks outside, each reached through an adapter."""
