"""Conversations: chat templates, tools, and the tokens that are trained."""
