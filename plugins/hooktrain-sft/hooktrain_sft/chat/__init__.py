"""Conversations: chat templates, tools, and which tokens are trained."""
