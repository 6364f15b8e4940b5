"""Conversations to prompts: messages as clients send them, and the template programs of models."""
